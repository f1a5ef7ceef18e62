"""Smaller attentions and MLPs out of larger ones: slices and products of their weights, nothing fitted here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vitedge.vit.architecture import Architecture
from vitedge.vit.block import BlockConfig
from vitedge.vit.convolution import Convolution
from vitedge.vit.layers import MLP, Attention, Block


def set_linear(layer: nn.Linear | Convolution, weight: Tensor, bias: Tensor) -> None:
    """Copy float64 results into a float32 layer of the same shape."""
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


def cut_mlp(mlp: MLP, kept: Sequence[int], weight: Tensor, bias: Tensor) -> MLP:
    """The MLP with only the units `kept`, and with fc2's new weight [C, kept] and bias [C]."""
    new = MLP(mlp.fc1.in_features, replace(mlp.config, hidden=len(kept), groups=()), mlp.grid)
    units = torch.as_tensor(kept)
    for old, layer in zip(mlp.by_unit(), new.by_unit(), strict=True):
        assert old.bias is not None
        set_linear(layer, old.weight[units], old.bias[units])
    set_linear(new.fc2, weight, bias)
    return new


def project_rows(layer: nn.Linear, heads: Sequence[int], dim: int, projections: Sequence[Tensor] | None) -> nn.Linear:
    """q, k or v with only some heads, each one's `dim` outputs multiplied by its projection [rank, dim]."""
    weight = layer.weight.detach().unflatten(0, (-1, dim))[list(heads)]
    bias = layer.bias.detach().unflatten(0, (-1, dim))[list(heads)]
    if projections is not None:
        p = torch.stack(list(projections))
        weight = (p @ weight.double()).to(layer.weight.dtype)
        bias = (p @ bias.double()[..., None])[..., 0].to(layer.bias.dtype)
    new = nn.Linear(layer.in_features, weight.shape[0] * weight.shape[1])
    set_linear(new, weight.flatten(0, 1), bias.flatten())
    return new


def cut_attention(
    attention: Attention,
    heads: Sequence[int],
    queries: Sequence[Tensor] | None,
    keys: Sequence[Tensor] | None,
    values: Sequence[Tensor] | None,
    weight: Tensor,
    bias: Tensor,
) -> Attention:
    """The attention with only the heads `heads`.

    `queries`, `keys` and `values` hold a projection [rank, dim] for each kept head, or None to leave it; `weight`
    [C, kept heads * v_dim] and `bias` [C] are the new output projection's. The softmax scale stays as it was.
    """
    c = attention.config
    qk_dim = c.qk_dim if queries is None else len(queries[0])
    v_dim = c.v_dim if values is None else len(values[0])
    new = attention.like(replace(c, heads=len(heads), qk_dim=qk_dim, v_dim=v_dim))
    with torch.no_grad():
        if attention.bias is not None and new.bias is not None:
            new.bias.table.copy_(attention.bias.table[:, list(heads)])
        if c.cosine:
            new.q_norm.weight.copy_(attention.q_norm.weight[list(heads)])  # type: ignore[union-attr, operator, index]
    new.q = project_rows(attention.q, heads, c.qk_dim, queries)
    new.k = project_rows(attention.k, heads, c.qk_dim, keys)
    new.v = project_rows(attention.v, heads, c.v_dim, values)
    set_linear(new.out, weight, bias)
    return new


def settle(block: Block) -> BlockConfig:
    """Make the block's configuration, and that of its halves, say what its parts now are."""
    attention, mlp = block.attention, block.mlp
    changes: dict = (
        {"heads": 0, "register": False}
        if attention is None
        else {name: getattr(attention.config, name) for name in ("heads", "qk_dim", "v_dim")}
    )
    changes |= (
        {"hidden": 0, "groups": (), "marker": False}
        if mlp is None
        else {"hidden": mlp.config.hidden, "groups": mlp.config.groups}
    )
    changes["merge"] = block.merge.config if block.merge is not None else None
    block.config = replace(block.config, **changes)
    if attention is None:
        block.norm1, block.norm1_register = None, None
    else:
        attention.config = block.config
    if mlp is None:
        block.norm2, block.norm2_marker = None, None
    else:
        mlp.config = block.config
    return block.config


def assemble(model: Architecture) -> Architecture:
    """A fresh model, its configuration taken from the blocks as they now are, with the same weights."""
    config = replace(model.config, blocks=tuple(settle(block) for block in model.encoder()))
    new = model.fresh(config)
    new.load_state_dict(model.state_dict())
    return new.eval()
