"""Block-wise reconstruction: one block's weights, by gradient steps, to what the dense block wrote.

As BRECQ (arXiv 2102.05426) does for quantisation: no labels, and no gradient leaves the block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitedge.prune.statistics import token_weights
from vitedge.prune.store import mixed
from vitedge.tokens.matching import split_sizes
from vitedge.vit.layers import Block

# LayerNorms of the stream.
_NORMS = ("norm", "downsample.norm", "attention.reduction.norm")
# A weight with more zeros than this share is sparse by intention.
SPARSE = 0.05


@dataclass(frozen=True)
class Fit:
    """Gradient steps a block, images a step, and Adam's peak learning rate."""

    steps: int
    batch: int
    lr: float


def fit_block(
    block: Block,
    inputs: Tensor,
    targets: Tensor,
    groups: Tensor | None,
    fit: Fit,
    generator: torch.Generator,
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Fit the block in place, so that block(inputs) comes near `targets`.

    `inputs` [I, N, C] is what the pruned network feeds it, `targets` [I, M, C] what the dense block wrote, `groups`
    [I, N] what it merges while it is fitted. The loss is the squared error relative to each token's variance
    (`token_weights`). LayerNorms stay as they are, so folded ones stay folded: what they could learn, the Linears after
    them can. Sparse weights keep their zeros.
    """
    parameters = [p for name, p in block.named_parameters() if not name.startswith(_NORMS)]
    if not fit.steps or not parameters:
        return
    for p in parameters:
        p.requires_grad_(True)
    kept = [(p, p != 0) for p in parameters if p.ndim > 1 and float((p == 0).float().mean()) > SPARSE]
    optimiser = torch.optim.Adam(parameters, lr=fit.lr, betas=(0.9, 0.99))
    order = torch.empty(0, dtype=torch.long)
    for step in range(fit.steps):
        while len(order) < fit.batch:
            order = torch.cat([order, torch.randperm(len(inputs), generator=generator)])
        picked, order = order[: fit.batch], order[fit.batch :]
        for group in optimiser.param_groups:
            group["lr"] = fit.lr * schedule(step, fit.steps)
        target = targets[picked].float()
        with mixed():
            stream = block(inputs[picked].float(), None if groups is None else groups[picked])
        out, sizes = split_sizes(stream.float(), block.width)
        value = ((out - target).pow(2).mean(-1) * token_weights(target, sizes)).mean()
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        with torch.no_grad():
            for p, where in kept:
                p.mul_(where)
        advance(3 * fit.batch)
    for p in parameters:
        p.requires_grad_(False)
        p.grad = None


def schedule(step: int, steps: int, warmup: float = 0.05) -> float:
    """Share of the peak learning rate at a step: linear up, then a cosine to zero."""
    at = (step + 1) / steps
    return min(at / warmup, 0.5 * (1 + math.cos(math.pi * max(at - warmup, 0.0) / (1 - warmup))))
