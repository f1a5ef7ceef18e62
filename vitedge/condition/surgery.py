"""Small operations on a model's layers that several transforms share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitedge.vit.model import Block, Site, VisionTransformer


def blocks_of(model: VisionTransformer) -> list[Block]:
    """The encoder blocks, with their type."""
    return cast("list[Block]", list(model.blocks))


def reconfigure(model: VisionTransformer, index: int, **changes: Any) -> None:
    """Puts `changes` into the configuration of block `index`, wherever the model keeps it."""
    model.config = model.config.with_block(index, **changes)
    config = model.config.blocks[index]
    block = blocks_of(model)[index]
    block.config = config
    if block.attention is not None:
        block.attention.config = config
    if block.mlp is not None:
        block.mlp.config = config
        if "groups" in changes:
            block.mlp.gelu_sites = nn.ModuleList(Site() for _ in range(len(config.groups) or 1))


def norms(model: VisionTransformer) -> Iterator[tuple[str, nn.LayerNorm, list[nn.Linear]]]:
    """(site name, LayerNorm, the Linears that read it), in the order of the data flow."""
    for i, block in enumerate(blocks_of(model)):
        if block.attention is not None and block.norm1 is not None:
            a = block.attention
            yield f"block{i}.norm1", block.norm1, [a.q, a.k, a.v]
        if block.mlp is not None and block.norm2 is not None:
            yield f"block{i}.norm2", block.norm2, [block.mlp.fc1]
    yield "norm", model.norm, [model.head]


def writers(model: VisionTransformer) -> Iterator[nn.Linear]:
    """The Linears whose output is added to the residual stream."""
    for block in blocks_of(model):
        if block.attention is not None:
            yield block.attention.out
        if block.mlp is not None:
            yield block.mlp.fc2


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """`parameter` <- `value`, in the parameter's type."""
    parameter.copy_(value.to(parameter.dtype).reshape(parameter.shape))
