from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from bench_run import QUICK, make_run, vitedge

from vitedge.bench import records, stats
from vitedge.bench.accuracy import by_image, figures
from vitedge.bench.compare import accuracy_change, compare, latency_change
from vitedge.bench.result import BenchResult
from vitedge.bench.schema import Data, Latency, Row
from vitedge.host.facts import Host


def _row(ms=20.0, top1=0.75, seed=0, n=500):
    times = np.sort(ms * (1 + np.random.default_rng(seed).exponential(0.05, 200)))
    latency = Latency(**vars(stats.summary(times)), samples=tuple(times.tolist()))
    ci95 = stats.wilson(round(n * top1), n)
    return Row(
        artifact="a", status="ok", top1=top1, top1_ci95=ci95, peak_rss_mib=100.0, size_mib=5.0, latency_ms=latency
    )


def _result(row=None, cpu="chip", sha256="x"):
    return BenchResult((row or _row(),), host=Host(cpu=cpu, cores=2), data=Data(path="d", sha256=sha256, n=500))


def _judged(right, agrees=None):
    """A row whose images were right or not, bool [n]; without labels where `right` is None."""
    of = agrees if right is None else right
    made = np.zeros(len(of), records.RECORD)
    made["index"], made["label"] = np.arange(len(of)), -1 if right is None else 0
    made["rank"] = 0 if right is None else ~right
    made["reference"] = -1 if agrees is None else 0
    made["same"] = False if agrees is None else agrees
    return Row(artifact="a", status="ok", by_image=by_image(made), **vars(figures(made)))


def test_a_slower_run_is_marked_and_noise_is_not():
    found = compare([("old", _result()), ("same", _result(_row(seed=1))), ("slow", _result(_row(ms=23, seed=2)))])
    rows = found.table.rows
    assert [row[1] for row in rows] == ["old", "same", "slow"]
    assert len(found.worse) == 1 and found.worse[0].startswith("a, slow: p50 x 1.1") and "▼" in rows[2][6]
    assert "▲" in compare([("old", _result()), ("fast", _result(_row(ms=15)))]).table.rows[1][6]


def test_latencies_of_other_machines_and_accuracies_of_other_images_are_not_compared():
    found = compare([("old", _result()), ("board", _result(_row(ms=40, top1=0.5), cpu="other", sha256="y"))])
    assert not found.worse and found.table.rows[1][4] is None and found.table.rows[1][6] is None
    assert "Nothing was compared" in found.verdict


def test_a_fall_in_accuracy_beyond_its_interval():
    found = compare([("old", _result(_row(top1=0.75))), ("new", _result(_row(top1=0.62)))])
    assert "top-1 -13.0" in found.worse[0]
    found = compare([("old", _result(_row(top1=0.75))), ("new", _result(_row(top1=0.74)))])
    assert not found.worse and "only a large loss is seen" in found.verdict


def test_the_interval_of_two_shares_agrees_with_statsmodels():
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    old, new = _row(top1=0.75), _row(top1=0.7)
    low, high = proportion.confint_proportions_2indep(350, 500, 375, 500, method="newcomb")
    assert accuracy_change(old, new, True).text == f"-5.0 [{100 * low:+.1f}, {100 * high:+.1f}]"
    assert latency_change(old, replace(new, latency_ms=None)) is None


def test_the_same_images_are_compared_in_pairs():
    """Twelve images of a hundred lost, none won: the two shares' intervals overlap, the pairs tell."""
    before = np.arange(100) < 80
    after = before & (np.arange(100) >= 12)
    old, new = _judged(before), _judged(after)
    paired = accuracy_change(old, new, True)
    unpaired = accuracy_change(replace(old, by_image=None), new, True)
    assert paired.worse and paired.paired and paired.text.startswith("-12.0")
    assert not unpaired.worse and not unpaired.paired
    expected = stats.paired_difference(after, before)
    assert paired.text == f"-12.0 [{100 * expected.low:+.1f}, {100 * expected.high:+.1f}]"
    found = compare([("old", _result(old)), ("new", _result(new))])
    assert "top-1 -12.0" in found.worse[0] and "Nothing became worse" not in found.verdict


def test_without_labels_agreement_is_compared_in_pairs():
    before, after = np.ones(100, bool), np.arange(100) >= 10
    change = accuracy_change(_judged(None, before), _judged(None, after), True)
    assert change.worse and change.figure == "agreement" and change.text.startswith("-10.0")


def test_other_images_of_the_same_data_are_not_taken_for_pairs():
    before, after = _judged(np.arange(100) < 80), _judged(np.arange(99) < 60)
    assert not accuracy_change(before, after, True).paired


def _write(path, *rows, **more):
    _result(*rows, **more).write(path)
    return path


def test_a_row_that_fails_now_is_worse(tmp_path):
    old = _write(tmp_path / "old.json")
    new = _write(tmp_path / "new.json", replace(_row(), status="failed", reason="hung"))
    done = vitedge("compare", old, new, "--fail", code=1)
    assert "a, new: hung" in done.stderr and "Compared" in done.stdout
    value = json.loads(vitedge("compare", old, old, "--json").stdout)
    assert value["worse"] == [] and len(value["rows"]) == 2
    vitedge("compare", old, code=2)
    (tmp_path / "no.json").write_text("{}")
    assert "not a bench result" in vitedge("compare", old, tmp_path / "no.json", code=2).stderr


def test_fail_stops_at_what_only_the_pairs_see(tmp_path):
    before = np.arange(100) < 80
    old = _write(tmp_path / "old.json", _judged(before))
    new = _write(tmp_path / "new.json", _judged(before & (np.arange(100) >= 12)))
    done = vitedge("compare", old, new, "--fail", code=1)
    assert "Nothing became worse" not in done.stdout and "top-1 -12.0" in done.stderr
    vitedge("compare", old, old, "--fail")


def test_a_run_folder_stands_for_its_newest_result(tmp_path):
    run = make_run(tmp_path)
    assert "Nothing was measured" in vitedge("compare", run, run, code=2).stderr
    vitedge("bench", "--run", run, *QUICK, "--only", "fp32")
    rows = json.loads(vitedge("compare", run, run, "--json").stdout)["rows"]
    assert {row["artifact"] for row in rows} == {"source", "onnxruntime-fp32"}
