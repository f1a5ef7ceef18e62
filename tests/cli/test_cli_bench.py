from __future__ import annotations

import json

import pytest
from bench_run import QUICK, make_compressed, make_run, rebuild, vitedge
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
    assert result["schema"] == 2 and [row["status"] for row in result["rows"]] == ["ok", "ok", "ok"]
    assert [row["artifact"] for row in result["rows"]] == ["source", "onnxruntime-fp32", "onnxruntime-int8"]
    assert "onnxruntime-int8" in done.stdout and "20 images of 40" in done.stdout
    kept = list((run / "bench").glob("*.json"))
    assert len(kept) == 1 and json.loads(kept[0].read_text())["rows"] == result["rows"]
    assert (run / "bench/work" / result["rows"][0]["records"]).is_file()
    assert result["rows"][1]["macs"] == 3072 and result["rows"][0]["size_mib"] > 0


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


def test_what_is_not_asked_for_may_be_broken(tmp_path):
    run = make_run(tmp_path)
    (run / "build/onnxruntime-int8/metadata.json").unlink()
    done = vitedge("bench", "--run", run, *QUICK, "--only", "fp32")
    assert "onnxruntime-fp32" in done.stdout and "int8" not in done.stdout
    assert "onnxruntime-int8" in vitedge("bench", "--run", run, *QUICK, code=1).stderr


def test_without_data_the_latency_is_measured_on_noise(run):
    done = vitedge("bench", "--run", run, *QUICK, "--only", "fp32")
    assert "latency on noise" in done.stdout and "accuracy is null" in done.stderr


def test_without_accuracy_nothing_is_said_about_it(run):
    done = vitedge("bench", "--run", run, *QUICK, "--only", "fp32", "--no-accuracy")
    assert "accuracy" not in done.stderr and "Accuracy" not in done.stdout and "Speed" in done.stdout


def _compress_again(run, classifier_noise):
    """What another `compress` in the same run does: other graphs, the builds as they were."""
    bundle = Bundle.open(run)

    def work(out):
        make_compressed(out, classifier_noise)
        return {}

    bundle.run_step("compress", work, options={"again": classifier_noise}, inputs=[], code="1")


def test_artifacts_of_an_earlier_model_are_refused(tmp_path):
    write_images(tmp_path / "images")
    run = make_run(tmp_path)
    common = ("bench", "--run", run, "--data", tmp_path / "images", *QUICK)
    vitedge(*common)
    vitedge("report", "--run", run)
    _compress_again(run, 0.5)
    done = vitedge(*common, code=1)
    assert "not of the run's present model" in done.stderr and "vitedge build --target onnxruntime" in done.stderr
    assert "vitedge build" in vitedge("pack", "--run", run, "-o", tmp_path / "p.tar", code=1).stderr
    assert not (tmp_path / "p.tar").exists()
    done = vitedge("predict", tmp_path / "images/000.png", "--run", run, code=1)
    assert "earlier state of the run" in done.stderr and "vitedge build" in done.stderr
    vitedge("report", "--run", run)
    text = (run / "report.md").read_text()
    assert "**Recommended: none.**" in text and "stale" in text
    kept = next(path for path in (run / "bench").glob("*.json"))
    done = vitedge("compare", kept, kept, "--fail", code=0)
    assert "stale" in done.stdout and "Nothing was compared" in done.stdout


def test_an_artifact_that_was_built_again_makes_its_old_row_stale(tmp_path):
    write_images(tmp_path / "images")
    run = make_run(tmp_path)
    vitedge("bench", "--run", run, "--data", tmp_path / "images", *QUICK)
    rebuild(run, "int8", 0.3)
    vitedge("report", "--run", run)
    text = (run / "report.md").read_text()
    assert "onnxruntime\\-int8: failed" in text.replace("onnxruntime-int8", "onnxruntime\\-int8")
    assert "it was built again since it was measured" in text and "| onnxruntime-fp32 |" in text


def test_a_simulators_files_are_no_part_of_the_size(tmp_path):
    run = make_run(tmp_path, extra_files={"simulator/big.bin": 3 * 2**20, "helper.bin": 2**20}, host_only=["simulator"])
    vitedge("bench", "--run", run, *QUICK, "--no-accuracy", "--json", tmp_path / "r.json")
    rows = {row["artifact"]: row for row in json.loads((tmp_path / "r.json").read_text())["rows"]}
    assert 1.0 < rows["onnxruntime-int8"]["size_mib"] < 1.1


def test_a_result_that_was_edited_is_refused(run, tmp_path):
    out = tmp_path / "r.json"
    vitedge("bench", "--run", run, "--data", run.parent / "images", *QUICK, "--json", out, "--no-accuracy")
    text = out.read_text()
    value = json.loads(text)
    value["rows"][1]["size_mib"] = 0.001
    out.write_text(json.dumps(value))
    assert "was changed after vitedge wrote it" in vitedge("compare", out, out, code=1).stderr
