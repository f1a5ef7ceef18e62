"""Block-wise reconstruction: one block's weights, by gradient steps, to what the dense block wrote.

As BRECQ (arXiv 2102.05426) does for quantisation: no labels, and no gradient leaves the block.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vitedge.prune.statistics import token_weights
from vitedge.vit.model import Block


def fit_block(
    block: Block,
    inputs: Tensor,
    targets: Tensor,
    *,
    queries: int | None,
    steps: int,
    batch: int,
    lr: float,
    generator: torch.Generator,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Fit the block in place, so that block(inputs) comes near `targets`.

    `inputs` [I, N, C] is what the pruned network feeds it, `targets` [I, M, C] what the dense block wrote. The
    loss is the squared error relative to each token's variance (`token_weights`). LayerNorms stay: what they
    could learn, the Linears after them can. Adam with a short warm-up and a cosine to zero; bfloat16 products
    where the processor multiplies them (weights and sums stay float32).
    """
    parameters = [p for n, p in block.named_parameters() if not n.startswith("norm")]
    if not steps or not parameters:
        return
    for p in parameters:
        p.requires_grad_(True)
    weights = token_weights(targets)
    optimiser = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99))
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(inputs), generator=generator)])
        picked, order = order[:batch], order[batch:]
        for group in optimiser.param_groups:
            group["lr"] = lr * schedule(step, steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16()):
            out = block(inputs[picked].float(), queries)
        error = (out.float() - targets[picked].float()).pow(2).mean(-1)
        loss = (error * weights[picked]).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        tick()
    for p in parameters:
        p.requires_grad_(False)
        p.grad = None


def schedule(step: int, steps: int, warmup: float = 0.05) -> float:
    """Share of the peak learning rate at a step: linear up, then a cosine to zero."""
    at = (step + 1) / steps
    return min(at / warmup, 0.5 * (1 + math.cos(math.pi * max(at - warmup, 0.0) / (1 - warmup))))


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AVX512_BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
