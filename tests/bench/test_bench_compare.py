from __future__ import annotations

import json

import numpy as np
import pytest
from bench_run import vitedge

from vitedge.bench import stats
from vitedge.bench.compare import accuracy_change, compare, latency_change


def _result(ms=20.0, top1=0.75, cpu="chip", seed=0, **more):
    times = (ms * (1 + np.random.default_rng(seed).exponential(0.05, 200))).tolist()
    row = {"artifact": "a", "status": "ok", "top1": top1, "peak_rss_mib": 100.0, "size_mib": 5.0}
    row |= {"top1_ci95": list(stats.wilson(round(500 * top1), 500)), "reason": ""}
    row |= {"latency_ms": stats.summary(np.array(times)) | {"samples": times}} | more
    return {"schema": 1, "host": {"cpu": cpu, "cores": 2}, "data": {"sha256": "x", "n": 500}, "rows": [row]}


def test_a_slower_run_is_marked_and_noise_is_not():
    _, rows, worse = compare([("old", _result()), ("same", _result(seed=1)), ("slow", _result(ms=23, seed=2))])
    assert [row[1] for row in rows] == ["old", "same", "slow"]
    assert len(worse) == 1 and worse[0].startswith("a, slow: p50 x 1.1") and "▼" in rows[2][6]
    assert "▲" in compare([("old", _result()), ("fast", _result(ms=15))])[1][1][6]


def test_latencies_of_other_machines_and_accuracies_of_other_images_are_not_compared():
    other = _result(ms=40, top1=0.5, cpu="other")
    other["data"]["sha256"] = "y"
    _, rows, worse = compare([("old", _result()), ("board", other)])
    assert not worse and rows[1][4] is None and rows[1][6] is None


def test_a_fall_in_accuracy_beyond_its_interval():
    _, _, worse = compare([("old", _result(top1=0.75)), ("new", _result(top1=0.62))])
    assert "top-1 -13.0" in worse[0]
    assert not compare([("old", _result(top1=0.75)), ("new", _result(top1=0.74))])[2]


def test_the_interval_of_two_shares_agrees_with_statsmodels():
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    old, new = _result(top1=0.75)["rows"][0], _result(top1=0.7)["rows"][0]
    low, high = proportion.confint_proportions_2indep(350, 500, 375, 500, method="newcomb")
    assert accuracy_change(old, new, True).text == f"-5.0 [{100 * low:+.1f}, {100 * high:+.1f}]"
    assert latency_change(old, new | {"latency_ms": None}) is None


def test_a_row_that_fails_now_is_worse(tmp_path):
    failed = _result()
    failed["rows"][0] |= {"status": "failed", "reason": "hung"}
    for name, value in (("old", _result()), ("new", failed)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    done = vitedge("compare", tmp_path / "old.json", tmp_path / "new.json", "--fail", code=1)
    assert "a, new: hung" in done.stderr and "Compared" in done.stdout
    value = json.loads(vitedge("compare", tmp_path / "old.json", tmp_path / "old.json", "--json").stdout)
    assert value["worse"] == [] and len(value["rows"]) == 2
    vitedge("compare", tmp_path / "old.json", code=2)
    (tmp_path / "no.json").write_text("{}")
    assert "not a bench result" in vitedge("compare", tmp_path / "old.json", tmp_path / "no.json", code=2).stderr
