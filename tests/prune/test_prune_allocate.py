"""The allocation against trying everything."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import pytest

from vitedge.prune.allocate import Allocation, Choice, allocate


@dataclass(frozen=True)
class Fixed:
    """A part whose choices do not depend on tokens."""

    ways: tuple[Choice, ...]
    index: int = 0
    merges: bool = False

    def choices(self, tokens: int) -> tuple[Choice, ...]:
        return self.ways


@dataclass(frozen=True)
class Scaled(Fixed):
    """A part that saves as much more as there are fewer tokens than eight."""

    def choices(self, tokens: int) -> tuple[Choice, ...]:
        return tuple(Choice(w.saved + 100 * (8 - tokens), w.harm, w.cut) for w in self.ways)


@dataclass(frozen=True)
class Merging(Fixed):
    merges: bool = True

    def choices(self, tokens: int) -> tuple[Choice, ...]:
        return Choice(0, 0.0, tokens), *(Choice(-7, 0.3 * (tokens - left), left) for left in range(4, tokens))


def parts(seed: int) -> list[Fixed]:
    rng = random.Random(seed)
    return [
        Fixed((Choice(0, 0.0, 0), *(Choice(rng.randrange(1, 1000), rng.random(), n) for n in range(1, 5))))
        for _ in range(5)
    ]


def only(found: Sequence[Allocation | None]) -> list[Choice] | None:
    return found[-1].chosen if found[-1] else None


@pytest.mark.parametrize("seed", range(8))
def test_least_harm_of_all_combinations(seed: int) -> None:
    options = parts(seed)
    need = sum(max(c.saved for c in part.ways) for part in options) // 2
    found = only(allocate(options, 1, need, bins=need))
    assert found is not None
    best = min(sum(c.harm for c in w) for w in product(*(p.ways for p in options)) if sum(c.saved for c in w) >= need)
    assert sum(c.saved for c in found) >= need
    assert sum(c.harm for c in found) == pytest.approx(best)


@pytest.mark.parametrize("stages", [0, 1, 2])
def test_tokens_and_widths_together_against_trying_everything(stages: int) -> None:
    rng = random.Random(7)
    ways = [tuple(Choice(60 * n, n * rng.random(), n) for n in range(4)) for _ in range(3)]
    options = [Merging(()), Scaled(ways[0]), Merging(()), Scaled(ways[1]), Scaled(ways[2])]

    def every(left: list[Fixed], tokens: int, merged: int, saved: int, harm: float) -> list[float]:
        if not left:
            return [harm] if saved >= 700 else []
        found = []
        for c in left[0].choices(tokens):
            stage = merged + (left[0].merges and c.cut != tokens)
            if stage <= stages:
                to = c.cut if left[0].merges else tokens
                found += every(left[1:], to, stage, saved + c.saved, harm + c.harm)
        return found

    tried = every(options, 8, 0, 0, 0.0)
    found = allocate(options, 8, 700, stages, bins=700)
    assert len(found) == stages + 1
    assert (found[-1] is None) == (not tried)
    if found[-1] is not None:
        assert found[-1].harm == pytest.approx(min(tried)) and found[-1].saved >= 700


def test_coarse_steps_still_save_enough() -> None:
    found = only(allocate(parts(3), 1, 1500, bins=64))
    assert found is not None and sum(c.saved for c in found) >= 1500


def test_too_much_is_refused() -> None:
    options = parts(1)
    most = sum(max(c.saved for c in part.ways) for part in options)
    assert only(allocate(options, 1, most + 1)) is None
    found = only(allocate(options, 1, most, bins=most))
    assert found is not None and sum(c.saved for c in found) == most


def test_nothing_needed_nothing_cut() -> None:
    found = only(allocate(parts(2), 1, 0))
    assert found is not None and all(c.cut == 0 for c in found)
