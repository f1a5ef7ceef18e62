"""Statistics of the harness, in numpy alone: a board has no scipy. All intervals are for 95 %."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


Interval = tuple[float, float]  # low, high


@dataclass(frozen=True)
class Summary:
    """Figures of `n` values, in their unit."""

    mean: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    std: float
    n: int


def summary(values: np.ndarray) -> Summary:
    """The figures of `values` [n], n >= 1.

    Percentiles by linear interpolation (numpy's default, type 7). p99 of fewer than 100 values lies between
    the two largest ones: read it with `n`.
    """
    values = np.asarray(values, np.float64)
    p50, p90, p95, p99 = np.percentile(values, (50, 90, 95, 99))
    std = values.std(ddof=1) if values.size > 1 else 0.0
    mean, least, most = float(values.mean()), float(values.min()), float(values.max())
    return Summary(mean, least, float(p50), float(p90), float(p95), float(p99), most, float(std), int(values.size))


def wilson(hits: int, n: int) -> Interval:
    """The Wilson score interval of a share `hits / n`, n >= 1 (E. B. Wilson, 1927)."""
    share, z2 = hits / n, Z95 * Z95
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p-value of McNemar's test: of the images that one of two models gets right, how
    likely so uneven a split is if neither is better. 1.0 where they never differ."""
    n, few = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(few + 1)]
    largest = max(logs)
    tail = sum(math.exp(value - largest) for value in logs)
    return min(1.0, 2.0 * math.exp(largest - n * math.log(2.0)) * tail)


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of `a` minus that of `b` on the same images, its 95 % interval and McNemar's exact p-value."""

    delta: float
    low: float
    high: float
    p_value: float
    only_a: int
    only_b: int


def paired_difference(a: np.ndarray, b: np.ndarray) -> PairedDifference:
    """Compares two models' hits, bool [n], on the same images, n >= 1.

    The interval is Agresti and Min's adjusted one ("Simple improved confidence intervals for comparing
    matched proportions", Statistics in Medicine 24, 2005): half an image is added to each cell of the 2x2
    table, so that two models that never differ still have an interval wider than zero.
    """
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    n, only_a, only_b = a.size, int((a & ~b).sum()), int((b & ~a).sum())
    n_adj, plus, minus = n + 2.0, only_a + 0.5, only_b + 0.5
    centre = (plus - minus) / n_adj
    half = Z95 * math.sqrt((plus + minus) - (plus - minus) ** 2 / n_adj) / n_adj
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return PairedDifference((only_a - only_b) / n, low, high, mcnemar(only_a, only_b), only_a, only_b)


@dataclass(frozen=True)
class Ratio:
    """How many times longer A takes than B, with its 95 % interval, from `rounds` paired rounds."""

    ratio: float
    low: float
    high: float
    rounds: int


def paired_ratio(a: Sequence[np.ndarray], b: Sequence[np.ndarray], *, resamples: int = 2000, seed: int = 0) -> Ratio:
    """The ratio of two runners' times from interleaved rounds, in one launch of their processes or in
    several.

    A round's two medians lie side by side in time, so the machine's drift divides out in its ratio. Two
    processes of the same artifact differ for as long as they live; so with several launches, each gives the
    median of its rounds' log ratios, and the interval is Student's over the launches. One launch knows
    nothing of that: its estimate is the 20 % trimmed mean of the log ratios, its interval the symmetric
    bootstrap-t over rounds (R. Wilcox, "Introduction to Robust Estimation and Hypothesis Testing", 4.4),
    which holds its 95 % from 10 rounds on, where the percentile bootstrap is too narrow.

    Args:
        a, b: for each launch the medians of its rounds, [rounds], as many in both.

    Raises:
        ValueError: one launch of fewer than five rounds, none at all, or numbers that differ.
    """
    log_ratios = [
        np.log(np.asarray(x, np.float64)) - np.log(np.asarray(y, np.float64)) for x, y in zip(a, b, strict=True)
    ]
    rounds = sum(one.size for one in log_ratios)
    if len(log_ratios) > 1:
        centres = np.array([np.median(one) for one in log_ratios])
        centre = float(centres.mean())
        half = _STUDENT[min(len(centres) - 1, len(_STUDENT)) - 1] * float(centres.std(ddof=1)) / math.sqrt(len(centres))
        return Ratio(math.exp(centre), math.exp(centre - half), math.exp(centre + half), rounds)
    if rounds < 5:
        raise ValueError(f"the interval of a ratio needs 5 rounds or more, not {rounds}")
    centre, half = _bootstrap_t(log_ratios[0], resamples, seed)
    return Ratio(math.exp(centre), math.exp(centre - half), math.exp(centre + half), rounds)


# The 97.5 % points of Student's distribution for 1, 2, ... degrees of freedom.
_STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


def _bootstrap_t(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """The trimmed mean of `values` [n] and the half width of its interval."""
    centre, error = _trimmed(values)
    picks = np.random.default_rng(seed).integers(0, values.size, (resamples, values.size))
    centres, errors = _trimmed(values[picks])
    # A resample of equal values has no error: it says nothing about the spread and counts as far out as it
    # is.
    distance = np.abs(centres - centre)
    t = np.divide(distance, errors, out=np.where(distance > 0, np.inf, 0.0), where=errors > 0)
    finite = t[np.isfinite(t)]
    return float(centre), float(np.quantile(finite, 0.95)) * float(error) if finite.size else 0.0


def _trimmed(values: np.ndarray, share: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """The trimmed mean along the last axis and its standard error (Tukey and McLaughlin, 1963)."""
    values = np.sort(values, -1)
    n = values.shape[-1]
    cut = int(share * n)
    kept = n - 2 * cut
    winsorised = np.clip(values, values[..., cut : cut + 1], values[..., n - cut - 1 : n - cut])
    error = winsorised.std(-1, ddof=1) * math.sqrt((n - 1) / (kept * (kept - 1)))
    return values[..., cut : n - cut].mean(-1), error
