from __future__ import annotations

import numpy as np
import pytest

from vitedge.bench import stats


def test_percentiles_of_a_known_distribution_are_right_within_one_percent():
    rng = np.random.default_rng(0)
    values = 5 + rng.exponential(2.0, 200_000)
    found = stats.summary(values)
    for share in (50, 90, 95, 99):
        assert getattr(found, f"p{share}") == pytest.approx(5 - 2 * np.log(1 - share / 100), rel=0.01)
    assert found.mean == pytest.approx(7, rel=0.01) and found.n == 200_000
    assert found.min <= found.p50 <= found.max
    assert stats.summary(np.array([3.0])).std == 0


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (367, 500), (1, 3), (36_700, 50_000)])
def test_wilson_agrees_with_statsmodels(hits, n):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    expected = proportion.proportion_confint(hits, n, method="wilson")
    assert stats.wilson(hits, n) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 5), (7, 3), (3, 7), (120, 90), (900, 1100), (4, 4)])
def test_mcnemar_agrees_with_statsmodels_and_scipy(only_a, only_b):
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    expected = tables.mcnemar([[50, only_a], [only_b, 30]], exact=True).pvalue
    if only_a + only_b:
        scipy_stats = pytest.importorskip("scipy.stats")
        assert expected == pytest.approx(scipy_stats.binomtest(only_a, only_a + only_b).pvalue)
    else:
        expected = 1.0
    assert stats.mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)


def test_the_paired_difference_covers_the_truth_and_is_never_of_zero_width():
    rng = np.random.default_rng(1)
    covered, truth, runs = 0, -0.02, 2000
    for _ in range(runs):
        b = rng.random(500) < 0.73
        lost = b & (rng.random(500) < 0.06)
        won = ~b & (rng.random(500) < (0.06 * 0.73 + truth) / 0.27)
        found = stats.paired_difference((b & ~lost) | won, b)
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / runs <= 0.97
    same = stats.paired_difference(np.ones(100, bool), np.ones(100, bool))
    assert (same.delta, same.p_value) == (0, 1.0) and same.low < 0 < same.high


def _run(rng: np.random.Generator, truth: float, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Two runners on a machine whose clock drifts by 30 % and which is disturbed now and then."""
    drift = 1 + 0.3 * np.sin(np.linspace(0, 3, rounds))[:, None]
    disturbed = 1 + (rng.random((2, rounds, 1)) < 0.08) * rng.exponential(0.5, (2, rounds, 1))
    noise = 1 + rng.exponential(0.05, (2, rounds, 5))
    times = drift * disturbed * noise * np.array([truth, 1.0])[:, None, None]
    return np.median(times[0], -1), np.median(times[1], -1)


@pytest.mark.parametrize("rounds", [20, 40])
def test_the_interval_of_the_paired_ratio_covers_the_truth_in_95_percent_of_1000_runs(rounds):
    rng = np.random.default_rng(2)
    covered = 0
    for run in range(1000):
        a, b = _run(rng, 1.2, rounds)
        found = stats.paired_ratio([a], [b], resamples=600, seed=run)
        covered += found.low <= 1.2 <= found.high
    assert 930 <= covered <= 970


@pytest.mark.parametrize("between", [0.02, 0.05])
def test_the_interval_over_launches_covers_the_truth_even_where_processes_differ(between):
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(1000):
        a, b = zip(*(_run(rng, 1.2 * np.exp(rng.normal(0, between)), 4) for _ in range(5)), strict=True)
        found = stats.paired_ratio(a, b)
        covered += found.low <= 1.2 <= found.high
    assert 930 <= covered <= 970


def test_the_paired_ratio_finds_a_difference_of_three_percent_under_thirty_percent_of_drift():
    a, b = _run(np.random.default_rng(3), 1.03, 200)
    found = stats.paired_ratio([a], [b])
    assert 1.0 < found.low < 1.03 < found.high < 1.06 and found.rounds == 200
    assert stats.paired_ratio([np.ones(6)], [np.ones(6)]) == stats.Ratio(1.0, 1.0, 1.0, 6)
    assert stats.paired_ratio([np.ones(2)] * 3, [np.ones(2)] * 3) == stats.Ratio(1.0, 1.0, 1.0, 6)
    with pytest.raises(ValueError, match="5 rounds"):
        stats.paired_ratio([np.ones(4)], [np.ones(4)])


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 10])
def test_students_points_agree_with_scipy(freedom):
    scipy_stats = pytest.importorskip("scipy.stats")
    assert stats._STUDENT[freedom - 1] == pytest.approx(scipy_stats.t.ppf(0.975, freedom), abs=1e-4)
