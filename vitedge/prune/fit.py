"""Block-wise reconstruction: one block's weights, by gradient steps, to what the dense block wrote.

As BRECQ (arXiv 2102.05426) does for quantisation: no labels, and no gradient leaves the block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vitedge.prune.statistics import token_weights
from vitedge.prune.store import mixed
from vitedge.vit.model import Block, VisionTransformer


@dataclass(frozen=True)
class Fit:
    """Gradient steps a block, pictures a step, and Adam's peak learning rate; the same for the end (`fit_end`)."""

    steps: int
    batch: int
    lr: float
    end_steps: int = 0
    end_lr: float = 3e-4

    def of_end(self) -> Fit:
        return Fit(self.end_steps, self.batch, self.end_lr)


def fit_block(
    block: Block,
    inputs: Tensor,
    targets: Tensor,
    queries: int | None,
    fit: Fit,
    generator: torch.Generator,
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Fit the block in place, so that block(inputs) comes near `targets`.

    `inputs` [I, N, C] is what the pruned network feeds it, `targets` [I, M, C] what the dense block wrote. The
    loss is the squared error relative to each token's variance (`token_weights`).
    """

    def loss(picked: Tensor) -> Tensor:
        target = targets[picked].float()
        with mixed():
            out = block(inputs[picked].float(), queries)
        return ((out.float() - target).pow(2).mean(-1) * token_weights(target)).mean()

    descend([block], loss, len(inputs), fit, generator, advance)


def fit_end(
    model: VisionTransformer,
    first: int,
    inputs: Tensor,
    logits: Tensor,
    fit: Fit,
    generator: torch.Generator,
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Fit the blocks from `first` on, in place, to the dense model's logits: after them nothing can make up.

    `inputs` [I, N, C] is what the pruned network feeds block `first`, `logits` [I, classes] are the dense model's.
    The loss is the KL divergence (Hinton et al., arXiv 1503.02531), of each class's own for a sigmoid.
    """
    blocks = list(model.encoder())[first:]

    def loss(picked: Tensor) -> Tensor:
        with mixed():
            x = inputs[picked].float()
            for index, block in enumerate(blocks, first):
                x = block(x, 1 if index == len(model.blocks) - 1 else None)
        return divergence(model.classify(x.float()), logits[picked], model.config.activation)

    descend(blocks, loss, len(inputs), fit, generator, advance)


def divergence(found: Tensor, wanted: Tensor, activation: str) -> Tensor:
    """KL divergence of two sets of logits [B, classes], a picture's mean, in nats."""
    if activation == "sigmoid":
        p = wanted.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(wanted, p, reduction="none")
        return (F.binary_cross_entropy_with_logits(found, p, reduction="none") - entropy).sum(-1).mean()
    return F.kl_div(found.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="batchmean")


def descend(
    blocks: Sequence[Block],
    loss: Callable[[Tensor], Tensor],
    pictures: int,
    fit: Fit,
    generator: torch.Generator,
    advance: Callable[[int], None],
) -> None:
    """Adam on the Linears of the blocks. `loss` takes the indices of a batch.

    LayerNorms stay as they are, so folded ones stay folded: what they could learn, the Linears after them can.
    """
    parameters = [p for b in blocks for name, p in b.named_parameters() if not name.startswith("norm")]
    if not fit.steps or not parameters:
        return
    for p in parameters:
        p.requires_grad_(True)
    optimiser = torch.optim.Adam(parameters, lr=fit.lr, betas=(0.9, 0.99))
    order = torch.empty(0, dtype=torch.long)
    for step in range(fit.steps):
        while len(order) < fit.batch:
            order = torch.cat([order, torch.randperm(pictures, generator=generator)])
        picked, order = order[: fit.batch], order[fit.batch :]
        for group in optimiser.param_groups:
            group["lr"] = fit.lr * schedule(step, fit.steps)
        value = loss(picked)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        advance(3 * fit.batch)
    for p in parameters:
        p.requires_grad_(False)
        p.grad = None


def schedule(step: int, steps: int, warmup: float = 0.05) -> float:
    """Share of the peak learning rate at a step: linear up, then a cosine to zero."""
    at = (step + 1) / steps
    return min(at / warmup, 0.5 * (1 + math.cos(math.pi * max(at - warmup, 0.0) / (1 - warmup))))
