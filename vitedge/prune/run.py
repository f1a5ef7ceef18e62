"""Pruning from the beginning to the end."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vitedge.prune.candidates import Candidates, find_candidates
from vitedge.prune.choose import decide
from vitedge.prune.effects import measure
from vitedge.prune.fit import fit_block
from vitedge.prune.options import PruneOptions
from vitedge.prune.plan import BlockPlan
from vitedge.prune.recover import apply_attention, apply_mlp, chunks, refit
from vitedge.prune.statistics import BlockMoments, gather, token_weights
from vitedge.prune.surgery import assemble
from vitedge.prune.views import augment
from vitedge.vit.model import VisionTransformer

Batches = Callable[[], Iterator[Tensor]]


@torch.no_grad()
def streams(model: VisionTransformer, batches: Batches, views: int, seed: int) -> Tensor:
    """The residual stream before block 0 [views * I, N, C], view after view; the first view is the images."""
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for view in range(views):
        for x in batches():
            kept.append(model.embed(augment(x, generator) if view else x))
    return torch.cat(kept)


def queries_of(model: VisionTransformer, index: int) -> int | None:
    """How many tokens the block works on: the last one only on [CLS]."""
    return 1 if index == len(model.blocks) - 1 else None


@torch.no_grad()
def observe_all(model: VisionTransformer, x: Tensor) -> list[BlockMoments]:
    """Every block's moments on the dense model."""
    found = []
    for index, block in enumerate(model.blocks):
        found.append(gather(block, chunks(x), queries_of(model, index)))
        x = torch.cat([block(part, queries_of(model, index)) for part in chunks(x)])
    return found


@torch.no_grad()
def through(block, x: Tensor, queries: int | None, half: str = "both") -> Tensor:
    """A store of streams through a block or one of its halves."""
    run = {"both": block, "attention": block.attend}[half]
    return torch.cat([run(part.float(), queries) for part in chunks(x)])
