"""Coefficients out of measured latencies: least squares of the relative errors, none below zero. Needs numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitedge.cost.terms import KINDS, Kind, Term, totals


@dataclass(frozen=True)
class Errors:
    """Relative errors of predictions, and the rank correlation (Spearman) with what was measured."""

    median: float
    most: float
    rank_correlation: float


def fit(work: Sequence[list[Term]], ms: Sequence[float]) -> dict[Kind, float]:
    """Nanoseconds a unit of each kind; `work` and `ms` of the same plans, in order.

    A kind that the plans say nothing of is left out.
    """
    sums = [totals(terms) for terms in work]
    kinds = [kind for kind in KINDS if any(one.get(kind) for one in sums)]
    times = 1e6 * np.asarray(ms, float)
    matrix = np.array([[one.get(kind, 0.0) for kind in kinds] for one in sums]) / times[:, None]
    scale = matrix.mean(0)
    found = nonnegative(matrix / scale, np.ones(len(times))) / scale
    return {kind: float(value) for kind, value in zip(kinds, found, strict=True) if value > 0}


def nonnegative(a: np.ndarray, b: np.ndarray, ridge: float = 1e-6, steps: int = 20_000) -> np.ndarray:
    """x >= 0 with the least |a x - b|^2, by coordinate descent; the ridge settles columns that are alike.

    a [rows, columns], b [rows].
    """
    gram = a.T @ a + ridge * len(b) * np.eye(a.shape[1])
    target, x = a.T @ b, np.zeros(a.shape[1])
    for _ in range(steps):
        before = x.copy()
        for i in range(len(x)):
            x[i] = max(0.0, x[i] + (target[i] - gram[i] @ x) / gram[i, i])
        if np.abs(x - before).max() < 1e-10 * max(1.0, np.abs(x).max()):
            break
    return x


def compare(predicted: Sequence[float], measured: Sequence[float]) -> Errors:
    """How near predictions are to measurements, both in the same unit and order."""
    p, m = np.asarray(predicted, float), np.asarray(measured, float)
    relative = np.abs(p / m - 1)
    return Errors(float(np.median(relative)), float(relative.max()), spearman(p, m))


def spearman(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Spearman's rank correlation; equal values share their mean rank. 0 where one of the two is constant."""
    ranks = [_ranks(np.asarray(values, float)) for values in (a, b)]
    x, y = (r - r.mean() for r in ranks)
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values))
    ranks[order] = np.arange(len(values))
    for value in np.unique(values):
        same = values == value
        ranks[same] = ranks[same].mean()
    return ranks
