"""From the effects of all candidates to the widths of the pruned network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from vitedge.errors import VitedgeError
from vitedge.prune.allocate import Choice, allocate
from vitedge.prune.candidates import Candidates, levels
from vitedge.prune.effects import Effects
from vitedge.prune.options import PruneOptions
from vitedge.prune.plan import BlockPlan, everything
from vitedge.vit.config import BlockConfig, ViTConfig
from vitedge.vit.macs import model_macs, model_params

Count = Callable[[ViTConfig], int]


@dataclass(frozen=True)
class AttentionCut:
    heads: int
    qk_dim: int
    v_dim: int


@dataclass(frozen=True)
class MLPCut:
    hidden: int


def count(unit: str) -> Count:
    """What is counted: MACs of one image with every block on all tokens, or parameters."""
    return model_macs if unit == "macs" else model_params


def planned(block: BlockConfig, attention: AttentionCut, mlp: MLPCut) -> BlockConfig:
    """The block with these widths."""
    return replace(
        block, heads=attention.heads, qk_dim=attention.qk_dim, v_dim=attention.v_dim, hidden=mlp.hidden, groups=()
    )


def curve(effects: dict[int, float], full: int) -> Callable[[int], float]:
    """Harm by what is left, linear between what was measured, and never less where more goes."""
    left = np.array([full, *sorted(effects, reverse=True)], float)
    harm = np.maximum.accumulate(np.array([0.0, *(effects[n] for n in sorted(effects, reverse=True))]))
    return lambda n: float(np.interp(n, left[::-1], harm[::-1]))


def choices(config: ViTConfig, index: int, effects: Effects, options: PruneOptions) -> list[list[Choice]]:
    """The ways to cut one block's attention and its MLP, with what each saves and the harm it does."""
    block, counted = config.blocks[index], count(options.prune_unit)
    dense = counted(config)

    def saved(**changes: int) -> int:
        return dense - counted(config.with_block(index, groups=(), **changes))

    found: list[list[Choice]] = []
    if block.heads:
        harm_heads = curve(effects.heads, block.heads)
        harm_qk, harm_v = curve(effects.logits, block.qk_dim), curve(effects.values, block.v_dim)
        heads = [block.heads, *levels(block.heads, 1, options.min_heads, block.heads + 1)]
        dims = [
            [full, *(levels(full, options.head_align, options.head_align, full) if free else ())]
            for full, free in ((block.qk_dim, block.free_logits), (block.v_dim, True))
        ]
        ways = []
        for h, qk, v in product(heads, *dims):
            if h == 0 and (qk, v) != (block.qk_dim, block.v_dim):
                continue
            harm = harm_heads(h) + (harm_qk(qk) + harm_v(v)) * h / block.heads
            ways.append(Choice(saved(heads=h, qk_dim=qk, v_dim=v), harm, AttentionCut(h, qk, v)))
        found.append(ways)
    if block.hidden:
        harm_units = curve(effects.units, block.hidden)
        units = [block.hidden, *levels(block.hidden, options.align, options.min_hidden, block.hidden)]
        found.append([Choice(saved(hidden=n), harm_units(n), MLPCut(n)) for n in units])
    return found


def decide(
    config: ViTConfig, candidates: Sequence[Candidates], effects: Sequence[Effects], options: PruneOptions
) -> tuple[list[BlockPlan], float]:
    """One plan a block, and the sum of the harms expected before any fitting (KL, nats).

    Raises: VitedgeError where the constraints don't allow the share; it names the largest that they do.
    """
    counted = count(options.prune_unit)
    total = counted(config)
    need = round((options.prune or 0.0) * total)
    parts = [part for i, e in enumerate(effects) for part in choices(config, i, e, options)]
    chosen = allocate(parts, need)
    if chosen is None:
        most = sum(max(choice.saved for choice in part) for part in parts) / total
        raise VitedgeError(
            f"Can't remove {options.prune:.0%} of the {options.prune_unit}.",
            f"With units in multiples of {options.align}, head sizes in multiples of {options.head_align}, and at "
            f"least {options.min_heads} head(s) and {options.min_hidden} units a block, {most:.3f} is the most.",
            f"Ask for at most {int(most * 1000) / 1000}, or lower --align, --min-hidden or --min-heads.",
        )
    plans, left = [], iter(chosen)
    for block, found in zip(config.blocks, candidates, strict=True):
        attention = next(left).cut if block.heads else None
        mlp = next(left).cut if block.hidden else None
        plans.append(to_plan(block, found, attention, mlp))
    return plans, sum(c.harm for c in chosen)


def to_plan(block: BlockConfig, found: Candidates, attention: AttentionCut | None, mlp: MLPCut | None) -> BlockPlan:
    """A block's plan from the widths chosen; None leaves that half as it is."""
    plan = everything(block)
    if attention is not None:
        heads = found.heads.get(attention.heads, plan.heads)
        plan = replace(plan, heads=heads, qk_dim=attention.qk_dim, v_dim=attention.v_dim)
    if mlp is not None:
        plan = replace(plan, units=pick_units(found, mlp.hidden, block.hidden))
    return plan


def pick_units(found: Candidates, left: int, full: int) -> tuple[int, ...]:
    """Which units stay where `left` do."""
    if left == full:
        return tuple(range(full))
    return tuple(sorted(found.unit_order[full - left :]))
