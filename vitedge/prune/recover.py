"""The walk through the blocks: cut, reconstruct in closed form, fit, go on with what the pruned network became."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitedge.moments import Moments, damping_for
from vitedge.prune.cut import plan_attention, plan_mlp
from vitedge.prune.fit import Fit, fit_block
from vitedge.prune.linear import ridge
from vitedge.prune.plan import BlockPlan
from vitedge.prune.statistics import AttentionMoments, token_weights
from vitedge.prune.store import mixed, parts, through
from vitedge.prune.surgery import set_linear
from vitedge.prune.watch import watching
from vitedge.vit.architecture import Architecture
from vitedge.vit.model import Block

# Of the ridge towards the dense residual stream, which fits noise with less: on held-out calibration images of a
# ViT-Ti/16 at 0.3, 10 was better than 1.
CAUTION = 10.0


@dataclass(frozen=True)
class Recovery:
    """How the pruned blocks are reconstructed.

    Attributes:
        method: "none", "ridge" or "block".
        damping: of the ridge. images: how many images the closed forms see, at most.
        fit: the gradient steps of "block".
    """

    method: str
    damping: float
    images: int
    fit: Fit


@dataclass(frozen=True)
class Errors:
    """Of one block: relative squared error after the closed form and after fitting."""

    cut: float
    fitted: float


def relative_error(out: Tensor, target: Tensor) -> float:
    """Mean over tokens of the squared error, relative to the token's variance."""
    return float(((out.float() - target.float()).pow(2).mean(-1) * token_weights(target)).mean())


def gather(layer: nn.Linear, name: str, block: Block, run: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Moments:
    """What a half's last layer reads, and what it should write for the dense residual stream to come out.

    `x` [I, N, C] is the pruned network's stream before the half `run`, `y` [I, M, C] the dense one after it; `name`
    is what `watching` calls the layer's input.
    """
    moments = Moments(layer.in_features, layer.out_features)
    with watching(block) as seen, mixed():
        for before, after in parts(x, y):
            run(before)
            moments.add(seen[name], after - before[:, : after.shape[1]], token_weights(after))
    return moments


def solve(layer: nn.Linear, moments: Moments, damping: float) -> None:
    """Ridge regression of a layer on its moments; the pull is towards its weights as they are."""
    damped = damping_for(damping, moments, CAUTION)
    weight = ridge(moments.covariance(), moments.cross(), damped, layer.weight.detach().double())
    mean_x, mean_y = moments.mean()
    set_linear(layer, weight, mean_y - weight @ mean_x)


@torch.no_grad()
def cut_block(
    block: Block, plan: BlockPlan, x: Tensor, middle: Tensor, out: Tensor, how: Recovery
) -> None:
    """Cut one block in place and reconstruct it in closed form.

    `x` [I, N, C] is what the pruned network feeds it, `middle` and `out` [I, M, C] the dense stream between its
    halves and after it.
    """
    compensate = how.method != "none"
    if block.attention is not None:
        stats = AttentionMoments(block.attention.config)
        with watching(block) as seen, mixed():
            for before, after in parts(x, middle):
                block.attend(before)
                stats.add(seen, after)
        plan_attention(block, plan, stats, compensate, damping_for(how.damping, stats.context))
    if block.attention is not None and compensate:
        # Where the MLP goes, the attention's layer makes up for it as well.
        wanted = out if plan.mlp_gone else middle
        layer = block.attention.out
        solve(layer, gather(layer, "context", block, block.attend, x, wanted), how.damping)
    if block.mlp is not None:
        layer = block.mlp.fc2
        moments = gather(layer, "hidden", block, block.feed_forward, through(block.attend, x), out)
        plan_mlp(block, plan, moments, compensate, damping_for(how.damping, moments))
        if block.mlp is not None and compensate:
            solve(block.mlp.fc2, moments.select(torch.as_tensor(plan.units)), how.damping)


def recover(
    dense: Architecture,
    pruned: Architecture,
    plans: Sequence[BlockPlan],
    start: Tensor,
    how: Recovery,
    seed: int,
    advance: Callable[[int], None],
) -> list[Errors]:
    """Carry out the plans in `pruned`, a copy of `dense`, block after block; returns each block's errors.

    `start` [I, N, C] is the stream before block 0. `advance(n)` is told of n images that went through a block.
    """
    generator = torch.Generator().manual_seed(seed)
    x_dense = x = start
    found = []
    for old, block, plan in zip(dense.encoder(), pruned.encoder(), plans, strict=True):
        middle = through(old.attend, x_dense)
        target = through(old.feed_forward, middle)
        # A block that computes only the tokens that the head reads has few an image: it needs all images.
        few = len(x) if block.queries else min(how.images, len(x))
        cut_block(block, plan, x[:few], middle[:few], target[:few], how)
        sample = min(256, len(x))
        cut = relative_error(through(block, x[:sample]), target[:sample])
        if how.method == "block":
            fit_block(block, x, target, how.fit, generator, advance)
        x = through(block, x)
        x_dense = target
        advance(len(x))
        found.append(Errors(cut, relative_error(x[:sample], target[:sample])))
    return found
