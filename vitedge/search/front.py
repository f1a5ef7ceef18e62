"""Pareto fronts, and which point of one meets a budget. Imports nothing of the house's but types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from vitedge.search.options import Budget

T = TypeVar("T")


def front_of(items: Sequence[T], *, cost: Callable[[T], float], loss: Callable[[T], float]) -> list[T]:
    """Those that no other beats in both, the cheapest first; of equal ones the first."""
    found: list[T] = []
    for item in sorted(items, key=lambda one: (cost(one), loss(one))):
        if not found or loss(item) < loss(found[-1]):
            found.append(item)
    return found


def within(
    items: Sequence[T],
    budget: Budget | None,
    max_drop: float,
    *,
    cost: Callable[[T], float],
    drop: Callable[[T], tuple[float, float]],
    agreement: Callable[[T], float],
) -> T | None:
    """The item for a budget: of those whose drop, its standard error added, is at most `max_drop` and whose cost is in
    the budget, the one nearest to the model as it came; without a budget the cheapest. None where there is none."""
    good = [one for one in items if sum(drop(one)) <= max_drop]
    if budget is None:
        return min(good, key=lambda one: (cost(one), -agreement(one)), default=None)
    good = [one for one in good if cost(one) <= budget.most]
    return max(good, key=lambda one: (agreement(one), -cost(one)), default=None)
