"""One block's plan carried out on the moments of what feeds it: projections, columns, biases."""

from __future__ import annotations

import torch
from torch import Tensor

from vitedge.moments import Moments
from vitedge.prune.linear import reduce_logits, reduce_values, restrict
from vitedge.prune.plan import BlockPlan
from vitedge.prune.statistics import AttentionMoments
from vitedge.prune.surgery import cut_attention, cut_mlp
from vitedge.vit.layers import Block


def columns(heads: tuple[int, ...], dim: int) -> Tensor:
    """Indices of the columns of some heads."""
    return torch.cat([torch.arange(h * dim, (h + 1) * dim) for h in heads])


def plan_attention(block: Block, plan: BlockPlan, stats: AttentionMoments, compensate: bool, damping: float) -> None:
    """Cut the block's attention to its plan; with `compensate`, the heads that stay make up for the others."""
    attention = block.attention
    if attention is None:
        return
    c = attention.config
    weight, bias = attention.out.weight.detach().double(), attention.out.bias.detach().double()
    mean, _ = stats.context.mean()
    if plan.attention_gone:
        block.attention, block.norm1 = None, None
        return
    if plan.untouched_attention(c):
        return
    covariance = stats.context.covariance()
    kept = columns(plan.heads, c.v_dim)
    new = weight[:, kept]
    if compensate:
        new = restrict(weight, covariance, kept, damping)
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
            if compensate:
                bias = bias + here @ mean[own] - w @ (b @ mean[own])
            values.append(b)
            parts.append(w)
        new = torch.cat(parts, 1)
    block.attention = cut_attention(attention, plan.heads, queries, keys, values, new, bias)


def plan_mlp(block: Block, plan: BlockPlan, hidden: Moments, compensate: bool, damping: float) -> None:
    """Cut the block's MLP to its plan; with `compensate`, the units that stay and the bias make up for the others."""
    mlp = block.mlp
    if mlp is None:
        return
    if plan.mlp_gone:
        block.mlp, block.norm2 = None, None
        return
    if len(plan.units) == mlp.config.hidden:
        return
    kept = torch.as_tensor(plan.units)
    weight, bias = mlp.fc2.weight.detach(), mlp.fc2.bias.detach()
    if not compensate:
        block.mlp = cut_mlp(mlp, plan.units, weight[:, kept], bias)
        return
    mean, _ = hidden.mean()
    new = restrict(weight.double(), hidden.covariance(), kept, damping)
    bias = bias.double() + weight.double() @ mean - new @ mean[kept]
    block.mlp = cut_mlp(mlp, plan.units, new, bias)
