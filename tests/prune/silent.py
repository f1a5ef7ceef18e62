"""Heads and units that write nothing, and a plan without them."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from vitedge.condition.apply import batched
from vitedge.prune.fit import Fit
from vitedge.prune.plan import everything
from vitedge.prune.recover import Recovery, recover
from vitedge.prune.store import embed_all
from vitedge.prune.surgery import assemble
from vitedge.vit.architecture import Architecture


def without_silent(dense: Architecture, x: Tensor) -> Architecture:
    """Silences the first head of 16 dims and every fourth unit of each block, in place; the model without them,
    nothing of which is recovered."""
    with torch.no_grad():
        for block in dense.encoder():
            block.attention.out.weight[:, :16] = 0  # type: ignore[union-attr]
            block.mlp.fc2.weight[:, ::4] = 0  # type: ignore[union-attr]
    plans = []
    for block in dense.config.blocks:
        units = tuple(n for n in range(block.hidden) if n % 4)
        plans.append(replace(everything(block), heads=tuple(range(1, block.heads)), units=units))
    small = copy.deepcopy(dense)
    how = Recovery("none", 1e-4, 384, Fit(0, 1, 1e-3))
    recover(dense, small, plans, embed_all(dense, batched(x), 1, 0), how, 0, lambda n: None)
    return assemble(small)
