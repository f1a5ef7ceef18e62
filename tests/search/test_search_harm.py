"""Plans by a price on harm, held against pruning's own exact allocation."""

from __future__ import annotations

import numpy as np
import pytest

from vitedge.prune.candidates import Candidates
from vitedge.prune.choose import decide
from vitedge.prune.effects import Effects
from vitedge.prune.options import PruneOptions
from vitedge.search.harm import read_effects, sweep
from vitedge.vit.config import uniform
from vitedge.vit.macs import model_macs

DENSE = uniform(image_size=64, patch_size=8, width=48, depth=4, heads=3, hidden=96, classes=10)


def effects() -> list[Effects]:
    """Harm that grows with what goes, differently in each block."""
    rng = np.random.default_rng(4)

    def curve(full: int, step: int) -> dict[int, float]:
        size, power = rng.uniform(0.01, 0.2), rng.uniform(1, 3)
        return {left: size * (1 - left / full) ** power for left in range(full - step, -1, -step)}

    tokens = [curve(65, 8) for _ in range(3)] + [{}]
    return [Effects(curve(96, 16), curve(3, 1), curve(16, 4), curve(16, 4), t) for t in tokens]


@pytest.mark.parametrize("by", ["auto", "tokens", "widths"])
def test_plans_are_those_that_pruning_finds(by: str) -> None:
    found = effects()
    options = PruneOptions(align=16, head_align=4, min_hidden=16, prune_by=by, merge="matched")
    plans = sweep(DENSE, found, options, 0.05, 0.6)
    assert len(plans) > 5
    any_of = [Candidates(unit_order=list(range(96)), heads={n: tuple(range(n)) for n in range(4)}) for _ in range(4)]
    for plan in plans:
        assert plan.share == pytest.approx(1 - model_macs(plan.config) / model_macs(DENSE))
        _, exact = decide(DENSE, any_of, found, options.model_copy(update={"prune": plan.asked}))
        # A further merge must be worth it in pruning's eyes; nothing else may differ.
        assert 0.85 * plan.harm < exact < 1.08 * plan.harm
    harms = [plan.harm for plan in plans]
    assert harms == sorted(harms)


def test_effects_come_back_from_json() -> None:
    import json
    from dataclasses import asdict

    found = effects()
    assert read_effects(json.loads(json.dumps([asdict(one) for one in found]))) == found
