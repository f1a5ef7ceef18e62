"""MLP units ordered by range and split into groups, each with a scale of its own for fc2's input. Exact.

After GELU nothing can be scaled (it is not homogeneous), and one unit with a large range takes the resolution
of all others: on a ViT-Ti/16 this one site costs 11 points of agreement.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vitedge.condition.ranges import ChannelStats, measure
from vitedge.condition.surgery import assign
from vitedge.vit.architecture import Architecture
from vitedge.vit.layers import MLP

# How far from the best a smaller group may be, as a ratio of noises.
FLAT = 1.15


def group_noise(width: Tensor, power: Tensor, columns: Tensor) -> float:
    """Rounding noise that one group of units makes in fc2's output, with one scale for the group.

    width [units]: the range of each unit; power [units]: its mean square, which its noise never exceeds,
    since it is at worst rounded to 0; columns [units]: the square of its fc2 column's norm.
    """
    step = width.max() / 255
    return float((torch.minimum(step.square() / 12, power) * columns).sum())


def choose_groups(width: Tensor, power: Tensor, columns: Tensor, most: int, gain: float, multiple: int) -> list[Tensor]:
    """The units of each group, as indices; one group where that is enough. Arguments as in `group_noise`.

    A group of far-out units is filled up to a multiple of `multiple` with the units that matter least, which
    a coarse scale does not hurt. A further group is taken only if it divides the noise by `gain`, and it is the
    smallest whose noise is within `FLAT` of the best: the optimum is flat, and each group is a product of its own.
    """
    groups = [torch.arange(len(width))]
    for _ in range(most - 1):
        rest = groups.pop()
        best = group_noise(width[rest], power[rest], columns[rest])
        done = sum(group_noise(width[g], power[g], columns[g]) for g in groups)
        tried = []
        for count in _counts(len(rest), multiple):
            parts = _split_off(rest, width, power * columns, count, multiple)
            tried.append((done + sum(group_noise(width[g], power[g], columns[g]) for g in parts), parts))
        limit = min((best + done) / gain, FLAT * min((noise for noise, _ in tried), default=0.0))
        choice = next((parts for noise, parts in tried if noise <= limit), None)
        if choice is None:
            groups.append(rest)
            break
        groups.extend(choice)
    return groups


def _counts(total: int, multiple: int) -> list[int]:
    """How many far-out units to try: 1, 2, 4... and multiples."""
    small = [c for c in (1, 2, 4, 8) if c < multiple]
    large = [c for c in range(multiple, total, multiple) if c <= 4 * multiple or c % (4 * multiple) == 0]
    return [c for c in small + large if -(-c // multiple) * multiple < total]


def _split_off(rest: Tensor, width: Tensor, importance: Tensor, count: int, multiple: int) -> tuple[Tensor, Tensor]:
    """(the `count` units of `rest` with the largest range and their fill, all others)."""
    order = rest[width[rest].argsort(descending=True, stable=True)]
    top, others = order[:count], order[count:]
    fill = -(-count // multiple) * multiple - count
    by_importance = others[importance[others].argsort(stable=True)]
    return torch.cat([top, by_importance[:fill]]), by_importance[fill:].sort().values


def reorder_units(mlp: MLP, order: Tensor) -> None:
    """Puts the MLP's units into `order` [hidden]; the function stays."""
    for layer in mlp.by_unit():
        assign(layer.weight, layer.weight[order].clone())
        if layer.bias is not None:
            assign(layer.bias, layer.bias[order].clone())
    assign(mlp.fc2.weight, mlp.fc2.weight[:, order].clone())


@torch.no_grad()
def group_units(
    model: Architecture, batches: Iterable[Tensor], most: int, gain: float, multiple: int
) -> dict[str, list[int]]:
    """Splits the units of each MLP where a few make the range, in place; returns block -> sizes."""
    for i, block in enumerate(model.encoder()):
        if block.mlp is not None and block.config.groups:
            model.reconfigure(i, groups=())
    stats = measure(model, batches, [n for n in model.sites() if n.endswith(".mlp.gelu")])
    chosen = {}
    for i, block in enumerate(model.encoder()):
        if block.mlp is None:
            continue
        stat: ChannelStats = stats[f"block{i}.mlp.gelu"]
        width = (stat.maximum.clamp_min(0) - stat.minimum.clamp_max(0)).double()
        columns = block.mlp.fc2.weight.double().square().sum(0)
        groups = choose_groups(width, stat.energy, columns, most, gain, multiple)
        if len(groups) > 1:
            reorder_units(block.mlp, torch.cat(groups))
            chosen[f"block{i}"] = [len(group) for group in groups]
            model.reconfigure(i, groups=tuple(chosen[f"block{i}"]))
    return chosen
