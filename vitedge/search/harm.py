"""What a plan does to the logits, before it is made: the effects of all cuts, measured once, and their allocation.

Loads torch where effects are measured; what plans are made of them needs the pruning's own allocation alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vitedge.bundle import Bundle
from vitedge.files import write_json
from vitedge.manifest import Facts
from vitedge.prune.options import PruneOptions
from vitedge.reporter import Reporter
from vitedge.steps.source import PIXELS, SOURCE, float_batches, need_pixels, read_preprocess
from vitedge.vit.config import ViTConfig

if TYPE_CHECKING:
    from pathlib import Path

    from vitedge.prune.allocate import Choice, Part
    from vitedge.prune.effects import Effects

# Harm (nats) that a saving of the whole model's cost may do, from next to none to anything, and steps between.
PRICES, STEPS = (1e-4, 1e4), 64
# Steps of that allocation (`prune.allocate`).
BINS = 4096

FILE = "search/effects.json"


@dataclass(frozen=True)
class Plan:
    """Widths and tokens that pruning would choose, the KL divergence expected of the logits before any fitting (nats),
    and the share of the cost that they remove."""

    config: ViTConfig
    harm: float
    share: float = 0.0

    @property
    def asked(self) -> float:
        """The share to ask pruning for: its allocation counts the savings of each part in steps, rounded down, so that
        asked for all of it, it would have to take more."""
        parts = 3 * len(self.config.blocks)
        return math.floor(1e4 * self.share * (1 - parts / BINS)) / 1e4


def measure_effects(bundle: Bundle, options: PruneOptions, reporter: Reporter) -> list[Effects]:
    """The effect of each cut of each block, kept in the run. `bundle` has a model and calibration images."""
    pixels = need_pixels(bundle, "Searching")

    def work(folder: Path) -> Facts:
        from vitedge.prune.measure import measure_cuts
        from vitedge.prune.run import check
        from vitedge.prune.store import embed_all
        from vitedge.vit.checkpoint import read_model

        model = read_model(bundle.path(SOURCE)).eval().requires_grad_(False)
        check(model, len(pixels), options)
        with reporter.busy(f"measuring on {len(pixels)} images what each cut would do to the logits"):
            start = embed_all(model, float_batches(pixels, read_preprocess(bundle)), 1, options.seed)
            measured = measure_cuts(model, start, options)
        write_json(folder / FILE, {"effects": [asdict(one) for one in measured.effects]})
        return {"images": len(pixels), "solved": measured.solved}

    bundle.run_step(
        "search-effects",
        work,
        options=options.model_dump(),
        inputs=[f"{SOURCE}/model.safetensors", f"{SOURCE}/arch.json", f"{SOURCE}/preprocess.json", PIXELS],
        modules=(__name__,),
    )
    return read_effects(bundle.json(FILE)["effects"])


def read_effects(values: Sequence[dict[str, dict[str, float]]]) -> list[Effects]:
    """The effects in JSON's form: its keys are text."""
    from vitedge.prune.effects import Effects

    return [Effects(**{name: {int(k): v for k, v in table.items()} for name, table in one.items()}) for one in values]


def sweep(config: ViTConfig, effects: Sequence[Effects], options: PruneOptions, low: float, high: float) -> list[Plan]:
    """Plans of the dense `config` that remove between `low` and `high` of its cost, each the one of least harm for what
    it removes: those on the lower convex hull, where harm + price * cost is least for some price.

    Asked for such a share, pruning's own exact allocation finds the same plan.
    """
    from vitedge.prune.choose import STAGES, find_parts, token_levels
    from vitedge.prune.price import price_of

    counted = price_of(config, options)
    total = counted.whole(config)
    parts = find_parts(config, effects, options)
    ways = {
        (n, left): _Ways.of(part, left)
        for n, part in enumerate(parts)
        for left in (config.tokens, *token_levels(config))
    }
    found: dict[tuple[Any, ...], Plan] = {}
    for price in np.geomspace(*PRICES, STEPS):
        chosen = _cheapest(parts, ways, config.tokens, price / total, STAGES)
        plan = _applied(config, [part.index for part in parts], [part.merges for part in parts], chosen, options)
        share = 1 - counted.whole(plan) / total
        if low <= share <= high and plan.blocks not in found:
            found[plan.blocks] = Plan(plan, sum(choice.harm for choice in chosen), share)
    return sorted(found.values(), key=lambda one: one.share)


@dataclass(frozen=True)
class _Ways:
    """The choices of a part where so many tokens reach it, as arrays."""

    choices: Sequence[Choice]
    saved: np.ndarray
    harm: np.ndarray

    @classmethod
    def of(cls, part: Part, tokens: int) -> _Ways:
        choices = part.choices(tokens)
        return cls(choices, np.array([c.saved for c in choices], float), np.array([c.harm for c in choices]))


def _cheapest(
    parts: Sequence[Part], ways: dict[tuple[int, int], _Ways], tokens: int, price: float, stages: int
) -> list[Choice]:
    """The choice of each part for which harm - price * saved is least in sum, with so many merges at most."""
    best: dict[tuple[int, int], float] = {(0, tokens): 0.0}
    trail: list[dict[tuple[int, int], tuple[tuple[int, int], Choice]]] = []
    for number, part in enumerate(parts):
        new: dict[tuple[int, int], float] = {}
        back: dict[tuple[int, int], tuple[tuple[int, int], Choice]] = {}
        values = {left: ways[number, left].harm - price * ways[number, left].saved for left in {t for _, t in best}}
        least = {left: int(np.argmin(value)) for left, value in values.items()}
        for state, before in best.items():
            merged, left = state
            own = ways[number, left].choices
            for at in range(len(own)) if part.merges else (least[left],):
                to = (merged + (own[at].cut != left), own[at].cut) if part.merges else state
                value = before + values[left][at]
                if to[0] <= stages and (to not in new or value < new[to]):
                    new[to], back[to] = value, (state, own[at])
        best = new
        trail.append(back)
    state, chosen = min(best, key=best.__getitem__), []
    for back in reversed(trail):
        state, choice = back[state]
        chosen.append(choice)
    return chosen[::-1]


def _applied(
    config: ViTConfig, indices: Sequence[int], merges: Sequence[bool], chosen: Sequence[Choice], options: PruneOptions
) -> ViTConfig:
    """The configuration that these choices make."""
    from vitedge.prune.choose import cut_config

    for index, merge, choice in zip(indices, merges, chosen, strict=True):
        if not merge or choice.cut != config.block_tokens(index).queries:
            config = cut_config(config, index, choice.cut, options)
    return config
