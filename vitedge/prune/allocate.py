"""Which tokens and widths stay: the least harm for the MACs that go. A knapsack along the blocks, solved exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Choice:
    """One way to cut one part.

    Attributes:
        saved: MACs or parameters less than the dense model's part has; below zero for what merging itself costs.
        harm: KL divergence of the logits that it makes, in nats.
        cut: what the choice means; for a merge the tokens that are left.
    """

    saved: int
    harm: float
    cut: Any


class Part(Protocol):
    """A part of the model: what its choices save depends on the tokens that reach it."""

    @property
    def index(self) -> int:
        """Its block."""

    @property
    def merges(self) -> bool:
        """Whether it changes the number of tokens."""

    def choices(self, tokens: int) -> Sequence[Choice]:
        """The ways to cut it where so many tokens reach it."""


@dataclass(frozen=True)
class Allocation:
    """One choice a part, and the sums over them."""

    chosen: list[Choice]
    saved: int
    harm: float


# (merges so far, tokens), and how each of them was reached by each saving: number of the choice, savings before it.
_State = tuple[int, int]
_Steps = dict[_State, tuple[np.ndarray, np.ndarray, list[tuple[_State, Choice]]]]


def allocate(
    parts: Sequence[Part], tokens: int, need: int, stages: int = 0, bins: int = 4096
) -> list[Allocation | None]:
    """For 0, 1, ... `stages` merges at most: the choices of least harm that save `need` together.

    Dynamic programming along the parts over (merges so far, tokens, savings), the savings in steps of `need / bins` and
    rounded down: what is found really saves enough. None where even the largest choices don't.
    """
    step, top = max(need, 1) / bins, bins + bins // 4  # a quarter below zero, for what merges cost before they save
    best: dict[_State, np.ndarray] = {(0, tokens): np.full(top + 1, np.inf)}
    best[0, tokens][top if need <= 0 else top - bins] = 0.0
    trail: list[_Steps] = []
    for part in parts:
        arrived: dict[_State, list[tuple[_State, Choice]]] = {}
        ways = {left: part.choices(left) for left in {left for _, left in best}}
        for merged, left in best:
            for choice in ways[left]:
                stage = merged + (part.merges and choice.cut != left)
                to = (stage, choice.cut if part.merges else left)
                if stage <= stages:
                    arrived.setdefault(to, []).append(((merged, left), choice))
        steps, new = {}, {}
        for state, moves in arrived.items():
            harm = np.full(top + 1, np.inf)
            pick, origin = np.zeros(top + 1, np.int32), np.zeros(top + 1, np.int32)
            for number, (source, choice) in enumerate(moves):
                before, shift = best[source], math.floor(choice.saved / step)
                low, high = max(0, -shift), min(top + 1, top - shift)  # what stays within, and below the end
                if high > low:
                    tried, place = before[low:high] + choice.harm, slice(low + shift, high + shift)
                    better = tried < harm[place]
                    harm[place][better], pick[place][better] = tried[better], number
                    origin[place][better] = np.arange(low, high)[better]
                reached = max(high, 0)
                if reached <= top:  # the end means "or more": the least of all that reach it
                    at = reached + int(np.argmin(before[reached:]))
                    if before[at] + choice.harm < harm[top]:
                        harm[top], pick[top], origin[top] = before[at] + choice.harm, number, at
            if np.isfinite(harm).any():
                new[state], steps[state] = harm, (pick, origin, moves)
        best = new
        trail.append(steps)
    return [_traced(best, trail, top, most) for most in range(stages + 1)]


def _traced(best: dict[_State, np.ndarray], trail: list[_Steps], top: int, stages: int) -> Allocation | None:
    ends = [(float(harm[top]), state) for state, harm in best.items() if state[0] <= stages and np.isfinite(harm[top])]
    if not ends:
        return None
    (harm, state), at, chosen = min(ends), top, []
    for steps in reversed(trail):
        pick, origin, moves = steps[state]
        state, choice = moves[int(pick[at])]
        at = int(origin[at])
        chosen.append(choice)
    return Allocation(chosen[::-1], sum(c.saved for c in chosen), harm)
