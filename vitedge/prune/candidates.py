"""Every way to cut one block, with the change it makes to the block's linear maps."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitedge.moments import damping_for
from vitedge.prune.linear import damped, drop, reduce_logits, reduce_values
from vitedge.prune.statistics import BlockMoments
from vitedge.vit.layers import Block


@dataclass
class Candidates:
    """Of one block. Keys are what would be left: units, heads, dims of a head; what is dense is left out.

    Attributes:
        unit_order: all units, the first to go first. heads: which heads stay.
        d_units, d_heads, d_values: change of fc2's or the output projection's weight, [C, inputs], the means
            being made up for by the bias. In bfloat16, as a large model has gigabytes of them: an effect sums over
            all of a change, so that its roundings cancel.
        d_logits: for each head, the matrix [dim, dim] that times q is q's change.
        tokens: how many would be left, and the groups where all images are merged alike, None where they are matched.
    """

    unit_order: list[int] = field(default_factory=list)
    heads: dict[int, tuple[int, ...]] = field(default_factory=dict)
    d_units: dict[int, Tensor] = field(default_factory=dict)
    d_heads: dict[int, Tensor] = field(default_factory=dict)
    d_values: dict[int, Tensor] = field(default_factory=dict)
    d_logits: dict[int, Tensor] = field(default_factory=dict)
    tokens: dict[int, tuple[int, ...] | None] = field(default_factory=dict)


def levels(width: int, align: int, fewest: int, most: int = 12) -> list[int]:
    """Multiples of `align` below `width`, largest first, `most` of them at about equal distances."""
    if align < 1:
        return []
    every = [n for n in range((width - 1) // align * align, -1, -align) if n >= fewest]
    if len(every) <= most:
        return every
    return [every[round(i * (len(every) - 1) / (most - 1))] for i in range(most)]


def eliminate(
    weight: Tensor,
    covariance: Tensor,
    groups: Tensor,
    scores: Tensor | None,
    snapshots: list[int],
    chunk: int,
    damping: float,
) -> tuple[dict[int, Tensor], list[int]]:
    """Remove groups of inputs one chunk after the other, the rest making up for them each time.

    `weight` [outputs, inputs], `covariance` [inputs, inputs], `groups` [groups, size] (columns of each). The order
    is that of `scores` [groups], or, without them, always the groups that cost least now (OBS).
    Returns: for each of `snapshots`, groups left -> the weight then, with zero columns; and the order of removal,
    followed by the groups that were never removed.
    """
    inverse = torch.linalg.inv(damped(covariance, damping))
    size, outputs = groups.shape[1], len(weight)
    left = torch.arange(len(groups))  # the groups still there, whose columns are all that weight and inverse keep
    found, order = {}, []
    for wanted in sorted(snapshots, reverse=True):
        while len(left) > wanted:
            rank = removal_costs(weight, inverse, size) if scores is None else scores[left].double()
            gone = rank.argsort(stable=True)[: min(chunk, len(left) - wanted)]
            columns = gone[:, None] * size + torch.arange(size)
            weight, inverse = drop(weight, inverse, columns.flatten())
            order += left[gone].tolist()
            stays = torch.ones(len(left), dtype=torch.bool)
            stays[gone] = False
            left = left[stays]
        found[wanted] = torch.zeros(outputs, len(covariance), dtype=weight.dtype)
        found[wanted][:, groups[left].flatten()] = weight
    return found, order + left.tolist()


def removal_costs(weight: Tensor, inverse: Tensor, size: int) -> Tensor:
    """Increase of the output's error if each group of `size` inputs alone were removed, the rest compensating."""
    if size == 1:
        return weight.pow(2).sum(0) / inverse.diagonal()
    costs = []
    for start in range(0, len(inverse), size):
        own, part = inverse[start : start + size, start : start + size], weight[:, start : start + size]
        costs.append((part * torch.linalg.solve(own, part.T).T).sum())
    return torch.stack(costs)


def find_candidates(
    block: Block,
    stats: BlockMoments,
    *,
    align: int,
    head_align: int,
    min_hidden: int,
    min_heads: int,
    damping: float,
    unit_scores: Tensor | None = None,
    head_scores: Tensor | None = None,
) -> Candidates:
    """All cuts of one block; `unit_scores` [hidden] and `head_scores` [heads] replace OBS's own order."""
    found = Candidates()
    if block.mlp is not None and stats.hidden is not None:
        weight = block.mlp.fc2.weight.detach().double()
        singles = torch.arange(weight.shape[1])[:, None]
        wanted = levels(len(singles), align, min_hidden)
        chunk = max(1, len(singles) // 48)
        news, found.unit_order = eliminate(
            weight, stats.hidden.covariance(), singles, unit_scores, wanted, chunk, damping_for(damping, stats.hidden)
        )
        found.d_units = {left: (new - weight).bfloat16() for left, new in news.items()}
    if block.attention is not None and stats.attention is not None:
        c = block.attention.config
        weight = block.attention.out.weight.detach().double()
        covariance = stats.attention.context.covariance()
        columns = torch.arange(c.heads * c.v_dim).unflatten(0, (c.heads, c.v_dim))
        wanted = levels(c.heads, 1, min_heads)
        damped = damping_for(damping, stats.attention.context)
        news, order = eliminate(weight, covariance, columns, head_scores, wanted, 1, damped)
        for left, new in news.items():
            found.heads[left], found.d_heads[left] = tuple(sorted(order[c.heads - left :])), (new - weight).bfloat16()
        for rank in levels(c.v_dim, head_align, head_align, 8):
            parts = []
            for own in columns:
                b, w = reduce_values(weight[:, own], covariance[own][:, own], rank)
                parts.append(w @ b)
            found.d_values[rank] = (torch.cat(parts, 1) - weight).bfloat16()
        for rank in levels(c.qk_dim, head_align, head_align, 8) if c.free_logits else ():
            pairs = [
                reduce_logits(q, k, rank) for q, k in zip(stats.attention.queries, stats.attention.keys, strict=True)
            ]
            eye = torch.eye(c.qk_dim, dtype=torch.float64)
            found.d_logits[rank] = torch.stack([(a.T @ b).T - eye for a, b in pairs]).float()
    return found
