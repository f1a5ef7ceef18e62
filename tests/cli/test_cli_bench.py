from __future__ import annotations

import json

import pytest
from bench_run import QUICK, make_run, vitedge
from bench_small import write_images

from vitedge.bundle import Bundle


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    write_images(folder / "images")
    return make_run(folder)


def test_bench_measures_all_artifacts_and_keeps_the_result(run, tmp_path):
    out = tmp_path / "r.json"
    done = vitedge("bench", "--run", run, "--data", run.parent / "images", *QUICK, "--json", out, "--limit", 20)
    result = json.loads(out.read_text())
    assert result["schema"] == 1 and [row["status"] for row in result["rows"]] == ["ok", "ok"]
    assert "onnxruntime-int8" in done.stdout and "20 images of 40" in done.stdout
    kept = list((run / "bench").glob("*.json"))
    assert len(kept) == 1 and json.loads(kept[0].read_text())["rows"] == result["rows"]
    assert (run / "bench/work" / result["rows"][0]["records"]).is_file()
    assert result["rows"][0]["macs"] == 3072 and result["rows"][0]["size_mib"] > 0


def test_a_gate_decides_the_exit_status(run):
    common = ("bench", "--run", run, "--data", run.parent / "images", *QUICK, "--only", "fp32")
    vitedge(*common, "--gate", "top1-drop=0.5,p50-ms=10000")
    done = vitedge(*common, "--gate", "p50-ms=0.000001", code=1)
    assert "onnxruntime-fp32" in done.stderr and "at most 1e-06 is asked" in done.stderr
    assert "Did you mean 'p50-ms'" in vitedge(*common, "--gate", "p50_ms=3", code=2).stderr


def test_wrong_calls_and_wrong_data_are_told_in_words(run, tmp_path):
    assert "no scenario 'fast'" in vitedge("bench", "--run", run, "--scenario", "fast", code=2).stderr
    assert "no artifact is called" in vitedge("bench", "--run", run, "--only", "gpu", code=2).stderr.lower()
    assert "There is no run" in vitedge("bench", "--run", tmp_path / "none", code=2).stderr
    bad = write_images(tmp_path / "bad", 4)
    (bad / "labels.csv").write_text("file,label\n000.png,9\n")
    assert "9" in vitedge("bench", "--run", run, "--data", bad, code=2).stderr
    Bundle.create(tmp_path / "empty")
    assert "vitedge build" in vitedge("bench", "--run", tmp_path / "empty", code=2).stderr


def test_an_artifact_that_was_changed_is_not_measured(tmp_path):
    run = make_run(tmp_path)
    path = run / "build/onnxruntime-fp32/model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "was changed after vitedge wrote it" in vitedge("bench", "--run", run, code=1).stderr


def test_without_data_the_latency_is_measured_on_noise(run):
    done = vitedge("bench", "--run", run, *QUICK, "--only", "fp32")
    assert "latency on noise" in done.stdout and "accuracy is null" in done.stderr
