"""The allocation against trying everything."""

from __future__ import annotations

import random
from itertools import product

import pytest

from vitedge.prune.allocate import Choice, allocate


def parts(seed: int) -> list[list[Choice[int]]]:
    rng = random.Random(seed)
    return [
        [Choice(0, 0.0, 0)] + [Choice(rng.randrange(1, 1000), rng.random(), n) for n in range(1, 5)] for _ in range(5)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_least_harm_of_all_combinations(seed: int) -> None:
    options = parts(seed)
    need = sum(max(c.saved for c in part) for part in options) // 2
    found = allocate(options, need, bins=need)
    assert found is not None
    best = min(sum(c.harm for c in way) for way in product(*options) if sum(c.saved for c in way) >= need)
    assert sum(c.saved for c in found) >= need
    assert sum(c.harm for c in found) == pytest.approx(best)


def test_coarse_steps_still_save_enough() -> None:
    options = parts(3)
    found = allocate(options, 1500, bins=64)
    assert found is not None and sum(c.saved for c in found) >= 1500


def test_too_much_is_refused() -> None:
    options = parts(1)
    most = sum(max(c.saved for c in part) for part in options)
    assert allocate(options, most + 1) is None
    found = allocate(options, most, bins=most)
    assert found is not None and sum(c.saved for c in found) == most


def test_nothing_needed_nothing_cut() -> None:
    found = allocate(parts(2), 0)
    assert found is not None and all(c.cut == 0 for c in found)
