"""From the effects of all candidates to the tokens and widths of the pruned network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from vitedge.errors import VitedgeError
from vitedge.prune.allocate import Allocation, Choice, Part, allocate
from vitedge.prune.candidates import Candidates, levels
from vitedge.prune.effects import Effects
from vitedge.prune.options import PruneOptions
from vitedge.prune.plan import BlockPlan, everything
from vitedge.prune.price import Price, price_of
from vitedge.vit.block import BlockConfig, BlockTokens, Merge
from vitedge.vit.config import ViTConfig

Count = Callable[[ViTConfig], int]
# Stages of merging at most: many small ones lose no less, and each costs operators. A further one must lower the
# expected harm by this share.
STAGES, WORTH = 4, 0.07
# What a share is one of, in words.
UNITS = {"macs": "MACs", "params": "parameters", "time": "time"}


@dataclass(frozen=True)
class AttentionCut:
    heads: int
    qk_dim: int
    v_dim: int


@dataclass(frozen=True)
class MLPCut:
    hidden: int


# The block that is left of one half, the harm, and what it means.
Way = tuple[BlockConfig, float, AttentionCut | MLPCut]


def count(config: ViTConfig, options: PruneOptions) -> Count:
    """What is counted: MACs of one image as exported, parameters, or predicted nanoseconds."""
    return price_of(config, options).whole


def curve(effects: dict[int, float], full: int) -> Callable[[int], float]:
    """Harm by what is left, linear between what was measured, and never less where more goes."""
    left = np.array([full, *sorted(effects, reverse=True)], float)
    harm = np.maximum.accumulate(np.array([0.0, *(effects[n] for n in sorted(effects, reverse=True))]))
    return lambda n: float(np.interp(n, left[::-1], harm[::-1]))


@dataclass(frozen=True)
class Widths:
    """The ways to cut one block's attention or MLP: the block that each would leave, and the harm it does."""

    config: ViTConfig
    index: int
    ways: tuple[Way, ...]
    price: Price
    merges: bool = False

    def choices(self, tokens: int) -> list[Choice]:
        """Those that no other beats in both cost and harm."""
        dense = self._cost(self.ways[0][0], self.config.tokens)
        found = [Choice(dense - self._cost(block, tokens), harm, cut) for block, harm, cut in self.ways]
        best, kept = np.inf, []
        for choice in sorted(found, key=lambda c: (-c.saved, c.harm)):
            if choice.harm < best:
                best = choice.harm
                kept.append(choice)
        return kept

    def _cost(self, block: BlockConfig, tokens: int) -> int:
        needed = self.config.queries(self.index) or tokens
        at = BlockTokens(tokens, needed, needed)
        if self.config.hierarchical:  # where none are merged, and each stage has its own
            at = self.config.block_tokens(self.index)
        return self.price.part(self.config.block_width(self.index), block, at)


@dataclass(frozen=True)
class Tokens:
    """The ways to merge tokens in one block: to any of `levels` that are at most halved."""

    config: ViTConfig
    index: int
    levels: tuple[int, ...]
    harm: Callable[[int], float]
    matched: bool
    price: Price
    merges: bool = True

    def choices(self, tokens: int) -> list[Choice]:
        """The first leaves all tokens. What was merged before did the same harm already."""
        prefix = self.config.prefix
        fewest = prefix + (tokens - prefix) // 2 if self.matched else prefix + 1
        before, found = self.harm(tokens), [Choice(0, 0.0, tokens)]
        for left in self.levels:
            if fewest <= left < tokens:
                cost = self.price.merge(self.config, tokens, left, matched=self.matched)
                found.append(Choice(-cost, max(0.0, self.harm(left) - before), left))
        return found


def attention_ways(block: BlockConfig, effects: Effects, options: PruneOptions) -> tuple[Way, ...]:
    """The ways to cut an attention; the block that each leaves has no MLP."""
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
        left = replace(block, heads=h, qk_dim=qk, v_dim=v, hidden=0, groups=())
        ways.append((left, harm, AttentionCut(h, qk, v)))
    return tuple(ways)


def mlp_ways(block: BlockConfig, effects: Effects, options: PruneOptions) -> tuple[Way, ...]:
    """The ways to cut an MLP; the block that each leaves has no attention."""
    harm = curve(effects.units, block.hidden)
    units = [block.hidden, *levels(block.hidden, options.align, options.min_hidden, block.hidden)]
    return tuple((replace(block, heads=0, hidden=n, groups=()), harm(n), MLPCut(n)) for n in units)


def token_levels(config: ViTConfig) -> tuple[int, ...]:
    """Numbers of tokens that a merge may leave: in about 24 steps, down to an eighth of the patches."""
    patches = config.tokens - config.prefix
    step = max(1, round(patches / 24))
    return tuple(range(config.tokens - step, config.prefix + max(1, patches // 8) - 1, -step))


def find_parts(
    config: ViTConfig, effects: Sequence[Effects], options: PruneOptions, tokens_weight: float = 1.0
) -> list[Part]:
    """The parts of the model, in the order in which tokens reach them; the harm of merging is multiplied by
    `tokens_weight`."""
    found: list[Part] = []
    price, whole = price_of(config, options), options.prune_by == "tokens"
    for i, (block, e) in enumerate(zip(config.blocks, effects, strict=True)):
        if block.heads:
            ways = attention_ways(block, e, options)
            found.append(Widths(config, i, ways[:1] if whole else ways, price))
        if e.tokens and options.prune_by != "widths" and price.tokens:
            harm = curve({left: tokens_weight * value for left, value in e.tokens.items()}, config.tokens)
            found.append(Tokens(config, i, token_levels(config), harm, options.merge != "constant", price))
        if block.hidden:
            ways = mlp_ways(block, e, options)
            found.append(Widths(config, i, ways[:1] if whole else ways, price))
    return found


def decide(
    config: ViTConfig,
    candidates: Sequence[Candidates],
    effects: Sequence[Effects],
    options: PruneOptions,
    tokens_weight: float = 1.0,
) -> tuple[list[BlockPlan], float]:
    """One plan a block, and the sum of the harms expected before any fitting (KL, nats).

    Raises: VitedgeError where the constraints don't allow the share; it names the largest that they do.
    """
    found = attempt(config, candidates, effects, options, tokens_weight)
    if found is None:
        parts = find_parts(config, effects, options, tokens_weight)
        total = count(config, options)(config)
        most = _most(parts, config, total) / total
        if options.prune_by == "tokens":
            raise VitedgeError(
                f"Can't remove {options.prune:.0%} of the {UNITS[options.prune_unit]} by merging tokens.",
                f"In up to {STAGES} blocks, {most:.3f} is the most.",
                f"Ask for at most {int(most * 1000) / 1000}, or leave --prune-by out: widths are cut too then.",
            )
        whole = "" if config.stem is None else "The convolutional stem stays whole. "
        raise VitedgeError(
            f"Can't remove {options.prune:.0%} of the {UNITS[options.prune_unit]}.",
            f"{whole}With units in multiples of {options.align}, head sizes in multiples of {options.head_align}, and "
            f"at least {options.min_heads} head(s) and {options.min_hidden} units a block, {most:.3f} is the most.",
            f"Ask for at most {int(most * 1000) / 1000}, or lower --align, --min-hidden or --min-heads.",
        )
    return found


def attempt(
    config: ViTConfig,
    candidates: Sequence[Candidates],
    effects: Sequence[Effects],
    options: PruneOptions,
    tokens_weight: float = 1.0,
) -> tuple[list[BlockPlan], float] | None:
    """What `decide` returns, or None where the constraints don't allow the share."""
    parts = find_parts(config, effects, options, tokens_weight)
    need = math.ceil((options.prune or 0.0) * count(config, options)(config))
    found = [a for a in allocate(parts, config.tokens, need, STAGES) if a is not None]
    if not found:
        return None
    chosen = found[0]
    for more in found[1:]:
        chosen = more if more.harm < (1 - WORTH) * chosen.harm else chosen
    return to_plans(config, candidates, parts, chosen), chosen.harm


def _most(parts: Sequence[Part], config: ViTConfig, total: int) -> int:
    """The most that the parts can save together, by halving."""
    low, high = 0, total
    while low < high:
        middle = (low + high + 1) // 2
        fits = allocate(parts, config.tokens, middle, STAGES, bins=512)[-1] is not None
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def to_plans(
    config: ViTConfig, candidates: Sequence[Candidates], parts: Sequence[Part], chosen: Allocation
) -> list[BlockPlan]:
    """Each block's plan from what was chosen of its parts."""
    plans, tokens = [everything(block) for block in config.blocks], config.tokens
    for part, choice in zip(parts, chosen.chosen, strict=True):
        i = part.index
        if not part.merges:
            plans[i] = to_plan(plans[i], config.blocks[i], candidates[i], choice.cut)
        elif choice.cut != tokens:
            plans[i], tokens = replace(plans[i], left=choice.cut), choice.cut
    return plans


def to_plan(plan: BlockPlan, block: BlockConfig, found: Candidates, cut: AttentionCut | MLPCut) -> BlockPlan:
    """The plan with the widths chosen."""
    if isinstance(cut, MLPCut):
        return replace(plan, units=pick_units(found, cut.hidden, block.hidden))
    return replace(plan, heads=found.heads.get(cut.heads, plan.heads), qk_dim=cut.qk_dim, v_dim=cut.v_dim)


def cut_config(config: ViTConfig, index: int, cut: AttentionCut | MLPCut | int, options: PruneOptions) -> ViTConfig:
    """The configuration with this alone cut: it counts right, though constant groups are not chosen yet."""
    if isinstance(cut, MLPCut):
        return config.with_block(index, hidden=cut.hidden, groups=())
    if isinstance(cut, AttentionCut):
        return config.with_block(index, heads=cut.heads, qk_dim=cut.qk_dim, v_dim=cut.v_dim)
    tokens = config.block_tokens(index).queries
    if cut == tokens:
        return config
    groups = tuple(min(n, cut - 1) for n in range(tokens)) if options.merge == "constant" else ()
    return config.with_block(index, merge=Merge(cut, groups, matched=not groups))


def pick_units(found: Candidates, left: int, full: int) -> tuple[int, ...]:
    """Which units stay where `left` do."""
    if left == full:
        return tuple(range(full))
    return tuple(sorted(found.unit_order[full - left :]))
