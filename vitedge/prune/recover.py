"""The walk through the blocks: cut, reconstruct in closed form, fit, go on with what the pruned network became."""

from __future__ import annotations

import torch
from torch import Tensor

from vitedge.prune.linear import reduce_logits, reduce_values, restrict, ridge
from vitedge.prune.moments import Moments
from vitedge.prune.plan import BlockPlan
from vitedge.prune.statistics import BlockMoments, token_weights
from vitedge.prune.surgery import cut_attention, cut_mlp, set_linear
from vitedge.prune.watch import watching
from vitedge.vit.model import Block


def chunks(x: Tensor, size: int = 32) -> list[Tensor]:
    """Views of a store of residual streams [I, N, C], `size` images each."""
    return list(x.split(size))


def columns(heads: tuple[int, ...], dim: int) -> Tensor:
    """Indices of the columns of some heads."""
    return torch.cat([torch.arange(h * dim, (h + 1) * dim) for h in heads])


def apply_attention(block: Block, plan: BlockPlan, stats: BlockMoments, *, compensate: bool, damping: float) -> None:
    """Cut the block's attention to its plan, on the moments of what this network feeds it."""
    attention = block.attention
    if attention is None:
        return
    if plan.attention_gone:
        block.attention, block.norm1 = None, None
        return
    c = attention.config
    weight, bias = attention.out.weight.detach().double(), attention.out.bias.detach().double()
    covariance, (mean, _) = stats.context.covariance(), stats.context.mean()
    kept = columns(plan.heads, c.v_dim)
    new = restrict(weight, covariance, kept, damping) if compensate else weight[:, kept]
    if compensate and len(plan.heads) < c.heads:
        bias = bias + weight @ mean - new @ mean[kept]
    queries = keys = values = None
    if plan.qk_dim < c.qk_dim:
        pairs = [reduce_logits(stats.queries[h], stats.keys[h], plan.qk_dim) for h in plan.heads]
        queries, keys = [a for a, _ in pairs], [b for _, b in pairs]
    if plan.v_dim < c.v_dim:
        values, parts = [], []
        for i, h in enumerate(plan.heads):
            own = columns((h,), c.v_dim)
            here = new[:, i * c.v_dim : (i + 1) * c.v_dim]
            b, w = reduce_values(here, covariance[own][:, own], plan.v_dim)
            bias = bias + here @ mean[own] - w @ (b @ mean[own])
            values.append(b)
            parts.append(w)
        new = torch.cat(parts, 1)
    block.attention = cut_attention(attention, plan.heads, queries, keys, values, new, bias)


def apply_mlp(block: Block, plan: BlockPlan, stats: BlockMoments, *, compensate: bool, damping: float) -> None:
    """Cut the block's MLP to its plan; with `compensate`, the kept units and the bias make up for the others."""
    mlp = block.mlp
    if mlp is None:
        return
    if plan.mlp_gone:
        block.mlp, block.norm2 = None, None
        return
    kept = torch.as_tensor(plan.units)
    weight, bias = mlp.fc2.weight.detach(), mlp.fc2.bias.detach()
    if not compensate or len(kept) == mlp.config.hidden:
        block.mlp = cut_mlp(mlp, plan.units, weight[:, kept], bias)
        return
    mean, _ = stats.hidden.mean()
    new = restrict(weight.double(), stats.hidden.covariance(), kept, damping)
    bias = bias.double() + weight.double() @ mean - new @ mean[kept]
    block.mlp = cut_mlp(mlp, plan.units, new, bias)


@torch.no_grad()
def refit(block: Block, half: str, inputs: Tensor, targets: Tensor, queries: int | None, damping: float) -> None:
    """Ridge regression of the layer that ends a half ("attention": out, "mlp": fc2), towards the residual stream.

    `inputs` [I, N, C] is the pruned network's stream before the half, `targets` [I, M, C] the dense one's after it.
    """
    layer = block.attention.out if half == "attention" else block.mlp.fc2
    moments = Moments(layer.in_features, layer.out_features)
    run = block.attend if half == "attention" else block.feed_forward
    arguments = (queries,) if half == "attention" else ()
    with watching(block) as seen:
        for x, y in zip(chunks(inputs), chunks(targets), strict=True):
            run(x.float(), *arguments)
            kept = x if queries is None else x[:, :queries]
            moments.add(
                seen["context" if half == "attention" else "hidden"],
                y.float() - (kept if half == "attention" else x).float(),
                token_weights(y),
            )
    prior = layer.weight.double()
    weight = ridge(moments.covariance(), moments.cross(), damping, prior)
    mean_x, mean_y = moments.mean()
    set_linear(layer, weight, mean_y - weight @ mean_x)
