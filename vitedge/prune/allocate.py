"""Which widths to choose: the least harm for the MACs that must go. A knapsack, solved exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """One way to cut one part: what it saves (MACs or parameters) and the harm it does (KL of the logits)."""

    saved: int
    harm: float
    cut: T


def allocate(parts: Sequence[Sequence[Choice[T]]], need: int, bins: int = 8192) -> list[Choice[T]] | None:
    """One choice a part, such that `need` is saved at least and the sum of the harms is least.

    Dynamic programming over the savings, in steps of `need / bins`, rounded down: what is found really saves
    enough. None where even the largest choices don't.
    """
    if need <= 0:
        return [min(options, key=lambda choice: choice.saved) for options in parts]
    step = need / bins
    best = np.full(bins + 1, np.inf)  # least harm that saves so many steps, the last entry meaning "or more"
    best[0] = 0.0
    picks = []
    for options in parts:
        new = np.full(bins + 1, np.inf)
        pick = np.zeros(bins + 1, np.int32)
        origin = np.zeros(bins + 1, np.int32)
        for index, choice in enumerate(options):
            shift = min(int(choice.saved / step), bins)
            for source, target in _moves(bins, shift):
                harm = best[source] + choice.harm
                if target.start == bins:  # all that reaches the end: the least of them
                    at = int(np.argmin(harm))
                    harm, where = harm[at : at + 1], np.array([source.start + at])
                else:
                    where = np.arange(source.start, source.stop)
                better = harm < new[target]
                new[target][better] = harm[better]
                pick[target][better] = index
                origin[target][better] = where[better]
        best = new
        picks.append((pick, origin))
    if not np.isfinite(best[bins]):
        return None
    chosen, at = [], bins
    for options, (pick, origin) in zip(reversed(parts), reversed(picks), strict=True):
        chosen.append(options[pick[at]])
        at = int(origin[at])
    return chosen[::-1]


def _moves(bins: int, shift: int) -> list[tuple[slice, slice]]:
    """Where `shift` steps lead from each entry: one to one below the end, all the others to the end."""
    below = bins - shift
    moves = [(slice(below, bins + 1), slice(bins, bins + 1))]
    if below > 0:
        moves.append((slice(0, below), slice(shift, bins)))
    return moves
