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
from vitedge.prune.record import recording
from vitedge.prune.statistics import AttentionMoments, attended_weights, token_weights
from vitedge.prune.store import matched, mixed, parts, pooled, through
from vitedge.prune.surgery import set_linear
from vitedge.tokens.constant import cluster, mean_distances
from vitedge.tokens.matching import compose, split_sizes
from vitedge.tokens.modules import TokenMerge
from vitedge.vit.architecture import Architecture
from vitedge.vit.block import Merge
from vitedge.vit.layers import Block, Site

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
        uncut: whether layers that the plan leaves as they are are solved and fitted too. The error of all tokens falls
            then, and that of the logits may rise: a ViT-Ti/16 with three merges alone had a KL divergence of 0.023
            from the dense model, and 0.046 with all its layers solved anew on 256 images.
    """

    method: str
    damping: float
    images: int
    fit: Fit
    uncut: bool = True


@dataclass(frozen=True)
class Errors:
    """Of one block: relative squared error after the closed form and after fitting."""

    cut: float
    fitted: float


def relative_error(stream: Tensor, target: Tensor, width: int) -> float:
    """Mean over tokens of the squared error, relative to the token's variance."""
    out, sizes = split_sizes(stream.float(), width)
    counted = target.new_ones(target.shape[:2]).float() if sizes is None else sizes
    return float(((out - target.float()).pow(2).mean(-1) * token_weights(target, sizes)).sum() / counted.sum())


def gather(layer: nn.Linear, name: str, block: Block, run: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Moments:
    """What a half's last layer reads, and what it should write for the dense residual stream to come out.

    `x` [I, N, C] is the pruned network's stream before the half `run`, `y` [I, M, C] the dense one after it; `name`
    is what `recording` calls the layer's input.
    """
    moments = Moments(layer.in_features, layer.out_features)
    with recording(block) as seen, mixed():
        for before, after in parts(x, y):
            run(before)
            inside = name == "context"
            stream = block.enter(before) if inside else before
            tokens, sizes = split_sizes(stream[:, : after.shape[1]], block.width)
            if inside:
                written, weights = block.as_attended(after - tokens), attended_weights(block, after, sizes)
            else:
                written, weights = after - tokens, token_weights(after, sizes)
            moments.add(seen[name], written, weights)
    return moments


def solve(layer: nn.Linear, moments: Moments, damping: float) -> None:
    """Ridge regression of a layer on its moments; the pull is towards its weights as they are."""
    damped = damping_for(damping, moments, CAUTION)
    weight = ridge(moments.covariance(), moments.cross(), damped, layer.weight.detach().double())
    mean_x, mean_y = moments.mean()
    set_linear(layer, weight, mean_y - weight @ mean_x)


@torch.no_grad()
def cut_attention(block: Block, plan: BlockPlan, x: Tensor, middle: Tensor, how: Recovery) -> None:
    """Cut a block's attention in place; the rest makes up for what goes. What the plan leaves is left as it is.

    `x` [I, N, C] is what the pruned network feeds it, `middle` [I, M, C] the dense stream between the halves.
    """
    if block.attention is None:
        return
    if plan.untouched_attention(block.config) and not plan.mlp_gone and not how.uncut:
        return
    stats = AttentionMoments(block.attention.config)
    with recording(block) as seen, mixed():
        for before, after in parts(x, middle):
            block.attend_unmerged(before)
            stats.add(seen, attended_weights(block, after))
    plan_attention(block, plan, stats, how.method != "none", damping_for(how.damping, stats.context))
    # What LayerNorm makes of a layer's output is not solved for: the plan's closed form stays.
    if block.attention is not None and how.method != "none" and not block.config.post_norm:
        layer = block.attention.out
        solve(layer, gather(layer, "context", block, block.attend_unmerged, x, middle), how.damping)


@torch.no_grad()
def cut_mlp(block: Block, plan: BlockPlan, x: Tensor, out: Tensor, how: Recovery) -> None:
    """Cut a block's MLP in place, its last layer solved for the dense stream `out` [I, M, C] after it.

    `x` [I, M, C] is the pruned network's stream between the halves, merged.
    """
    if block.mlp is None or (len(plan.units) == block.config.hidden and not how.uncut):
        return
    compensate = how.method != "none"
    moments = gather(block.mlp.fc2, "hidden", block, block.feed_forward, x, out)
    plan_mlp(block, plan, moments, compensate, damping_for(how.damping, moments))
    if block.mlp is not None and compensate and not block.config.post_norm:
        solve(block.mlp.fc2, moments.select(torch.as_tensor(plan.units)), how.damping)


def choose_merge(block: Block, plan: BlockPlan, middle: Tensor, prefix: int, constant: bool) -> TokenMerge | None:
    """The merge that the plan asks for; constant groups are those that suit the streams `middle` [I, N, C]."""
    if plan.left is None:
        return block.merge
    groups: tuple[int, ...] = ()
    if constant:
        distances, sizes = mean_distances((x for (x,) in parts(middle)), block.width, prefix)
        groups = cluster(distances, sizes, plan.left, prefix)
    return TokenMerge(Merge(plan.left, groups, not constant), block.width, prefix, Site())


def recover(
    dense: Architecture,
    pruned: Architecture,
    plans: Sequence[BlockPlan],
    start: Tensor,
    how: Recovery,
    seed: int,
    advance: Callable[[int], None],
    *,
    constant: bool = False,
) -> list[Errors]:
    """Carry out the plans in `pruned`, a copy of `dense`, block after block; returns each block's errors.

    `start` [I, N, C] is the stream before block 0. `advance(n)` is told of n images that went through a block.
    constant: whether all images are merged alike. What a merged token should be is the mean of those of the dense
    network's tokens that it stands for; while a block is solved and fitted, its groups stay as they are. Where the
    dense model merges already, the pruned one merges the same tokens here.
    """
    generator = torch.Generator().manual_seed(seed)
    x_dense = x = start
    history: Tensor | None = None  # where each token of the dense stream is in the pruned one, [I, N]
    found = []
    for old, block, plan in zip(dense.encoder(), pruned.encoder(), plans, strict=True):
        if x is x_dense and old.merge is None and plan.left is None and not plan.cuts(old.config):
            x = x_dense = through(old, x_dense)  # nothing has been cut so far, and nothing is to be made up for
            advance(len(x) + (3 * how.fit.steps * how.fit.batch if how.method == "block" else 0))
            found.append(Errors(0.0, 0.0))
            continue
        # A block that computes only the tokens that the head reads has few an image: it needs all images.
        few = len(x) if block.queries else min(how.images, len(x))
        middle = through(old.attend_unmerged, x_dense)
        own = None if old.merge is None else matched(old.merge, middle)
        wanted = pooled(middle, history)[..., : block.width]
        if old.merge is not None and own is not None:
            middle = through(old.merge, middle, own)
        x_dense = through(old.feed_forward, middle)
        if plan.mlp_gone and block.attention is not None and plan.left is None and own is None:
            wanted = pooled(x_dense, history)[..., : block.width]  # the attention's layer makes up for the MLP as well
        cut_attention(block, plan, x[:few], wanted[:few], how)
        merging = plan.left is not None or block.merge is not None
        between = through(block.attend_unmerged, x if merging else x[:few])
        block.merge = choose_merge(block, plan, between, dense.config.prefix, constant)
        groups, new = own, history
        if block.merge is not None:
            groups = matched(block.merge, between) if own is None else own
            new = compose(history, groups) if own is None else history
            between = through(block.merge, between, groups)
        target = pooled(x_dense, new)[..., : block.width]
        cut_mlp(block, plan, between[:few], target[:few], how)
        sample = min(256, len(x))
        cut = relative_error(through(block.feed_forward, between[:sample]), target[:sample], block.width)
        if how.method == "block" and (how.uncut or plan.cuts(old.config)):
            fit_block(block, x, target, groups, how.fit, generator, advance)
        elif how.method == "block":
            advance(3 * how.fit.steps * how.fit.batch)
        if block.merge is None:
            x = through(block, x)
        else:
            between = through(block.attend_unmerged, x)  # fitting has moved it, and so what is near
            groups = matched(block.merge, between) if own is None else own
            history = compose(history, groups) if own is None else history
            x = through(block.feed_forward, through(block.merge, between, groups))
        fitted = relative_error(
            x[:sample], pooled(x_dense[:sample], None if history is None else history[:sample]), block.width
        )
        advance(len(x))
        found.append(Errors(cut, fitted))
    return found
