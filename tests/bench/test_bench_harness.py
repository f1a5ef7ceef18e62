from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench_small import SIZE, write_classifier, write_images

from vitedge import metrics
from vitedge.bench import rounds
from vitedge.bench.artifact import Artifact
from vitedge.bench.evaluate import RecordFile
from vitedge.bench.groups import Job, groups
from vitedge.bench.harness import Harness
from vitedge.bench.jobs import Settings
from vitedge.bench.result import new_row
from vitedge.bench.source import DatasetSource
from vitedge.data.folder import open_dataset
from vitedge.data.preprocess import Preprocess
from vitedge.reporter import Reporter

QUICK = Settings(seconds=0.05, launches=2)
PREPROCESS = Preprocess(SIZE, SIZE)


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    images = write_images(tmp_path / "images")
    reference = Artifact("source", "onnxruntime", "fp32", write_classifier(tmp_path / "reference.onnx"))
    return DatasetSource(open_dataset(images), PREPROCESS), reference, tmp_path


def _fake(name, **metadata):
    return Artifact(name, "fake", "int8", Path("x"), metadata={"classes": 4} | metadata, module="bench_fakes")


def _harness(small, settings=QUICK, **options):
    source, reference, folder = small
    job = reference and _job(reference)
    return Harness(source, folder / "work", settings, reference=job, preprocess=PREPROCESS, **options)


def _job(artifact, **known):
    return Job(artifact, new_row(artifact, **known))


def test_a_run_over_real_and_broken_artifacts(small):
    _, reference, folder = small
    noisy = Artifact("onnxruntime-int8", "onnxruntime", "int8", write_classifier(folder / "noisy.onnx", 0.002))
    exact = Artifact("onnxruntime-fp32", "onnxruntime", "fp32", reference.path)
    jobs = [exact, noisy, _fake("crash", do="crash", after=11), _fake("simulator", device="simulator")]
    reporter = Reporter()
    result = _harness(small, reporter=reporter).run([_job(job, size_mib=1.0) for job in jobs])
    json.dumps(result.to_dict(), allow_nan=False)
    source, fp32, int8, crash, simulator = result.rows
    assert [row.status for row in result.rows] == ["ok", "ok", "ok", "failed", "ok"]
    assert fp32.top1 == pytest.approx(0.9) and fp32.agreement == 1 and fp32.delta_top1 == 0
    assert fp32.sqnr_db is None and fp32.kl_nats == 0 and fp32.device == "cpu" and fp32.size_mib == 1.0
    assert int8.sqnr_db is not None and int8.top1 <= 0.9 and int8.delta_ci95[0] < int8.delta_top1
    for row in (fp32, int8):
        assert row.latency_ms.n >= 10 and row.latency_ms.p50 <= row.latency_ms.p99
        assert row.cold_start_ms.load > 0 and row.peak_rss_mib > 20
        assert row.stages_ms.end_to_end.p50 >= row.stages_ms.preprocess.p50 > 0
    assert int8.latency_ratio.to == "source" == fp32.latency_ratio.to and source.latency_ratio is None
    assert "SIGSEGV" in crash.reason and crash.latency_ms is None and crash.top1 is None
    assert simulator.latency_ms is None and simulator.cold_start_ms is None and simulator.top1 is not None
    assert simulator.latency_ratio is None and simulator.throughput_ips is None
    assert any(line.startswith("crash:") for line in reporter.warnings)
    assert result.data.n == 40 and result.host.name is None


ONLY_ACCURACY = Settings(seconds=0.05, scenarios=())


def _measured(small, artifact):
    return _harness(small, ONLY_ACCURACY).run([_job(artifact)]).row(artifact.name)


def test_an_interrupted_row_goes_on_where_it_stopped(small):
    work = small[2] / "work"
    whole = _measured(small, _fake("row"))
    made = RecordFile(work / "row.rec", with_logits=False).found
    assert made.size == 40 and whole.status == "ok"
    for path in work.glob("row.*"):
        path.unlink()
    # Ten inferences warm up, the eleventh is a first command of a few images; the next one crashes.
    assert _measured(small, _fake("row", do="crash", after=11)).status == "failed"
    part = RecordFile(work / "row.rec", with_logits=False).found
    assert 0 < part.size < 40 and np.array_equal(part, made[: part.size])
    with (work / "row.rec").open("ab") as file:
        file.write(b"torn" * 20)  # what a kill between a batch and its state leaves
    again = _measured(small, _fake("row"))
    assert np.array_equal(RecordFile(work / "row.rec", with_logits=False).found, made)
    assert again.top1 == whole.top1 and again.sqnr_db == whole.sqnr_db
    assert (work / "row.rec").stat().st_size == made.nbytes


@pytest.mark.parametrize("damage", ["", "{", "null", "[]", '{"count": 99999999999}', '{"count": 40}', '{"count": "x"}'])
def test_a_torn_state_is_measured_again(small, damage):
    work = small[2] / "work"
    whole = _measured(small, _fake("row"))
    for name in ("row.json", "source.json"):
        (work / name).write_text(damage)
    again = _measured(small, _fake("row"))
    assert again == whole or replace(again, **_timings(whole)) == whole


@pytest.mark.parametrize("name", ["row.rec", "source.rec", "source.f32"])
def test_records_that_were_changed_by_hand_are_measured_again(small, name):
    whole = _measured(small, _fake("row", noise=0.2))
    path = small[2] / "work" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    again = _measured(small, _fake("row", noise=0.2))
    assert (again.top1, again.by_image.right) == (whole.top1, whole.by_image.right)
    assert again.status == "ok" and RecordFile(small[2] / "work" / "row.rec", with_logits=False).found.size == 40


def _timings(row):
    return {name: getattr(row, name) for name in ("cold_start_ms", "peak_rss_mib", "base_rss_mib")}


def test_the_source_model_is_the_first_row_and_has_no_agreement_with_itself(small):
    result = _harness(small).run([_job(_fake("row"))])
    source = result.rows[0]
    assert (source.artifact, source.role, result.reference) == ("source", "source", "source")
    assert source.top1 == pytest.approx(0.9) and source.agreement is None and source.delta_top1 is None
    assert source.latency_ms.n >= 10 and source.size_mib is None and result.data.labels is True


def test_a_single_logit_says_yes_or_no(small):
    source, _, folder = small
    lines = (folder / "images/labels.csv").read_text().splitlines()[1:]
    two = [f"{line.split(',')[0]},{int(line.split(',')[1]) % 2}" for line in lines]
    (folder / "images/labels.csv").write_text("\n".join(["file,label", *two]) + "\n")
    source = DatasetSource(open_dataset(folder / "images"), PREPROCESS)
    result = _harness((source, None, folder), ONLY_ACCURACY).run([_job(_fake("one", classes=1))])
    row = result.row("one")
    found = RecordFile(folder / "work/one.rec", with_logits=False).found
    assert set(found["pred"]) <= {0, 1} and row.status == "ok"
    assert row.top1 == pytest.approx(float((found["pred"] == source.labels).mean())) and 0.2 < row.top1 < 0.8


def test_embeddings_agree_where_each_image_has_the_same_nearest_one(small):
    result = _harness(small, ONLY_ACCURACY, activation="none").run([_job(_fake("row", noise=0.05))])
    row, work = result.row("row"), small[2] / "work"
    own, source = (RecordFile(work / f"{name}.rec", with_logits=True).logits(0, 40) for name in ("row", "source"))
    assert row.agreement == pytest.approx(metrics.agreement(source, own, "none")) and 0 < row.agreement < 1
    assert row.top1 is None and row.kl_nats == pytest.approx(metrics.kl(source, own, "none"), rel=1e-4)
    assert row.cosine_mean == pytest.approx(1 - row.kl_nats, abs=1e-4) and row.cosine_worst < row.cosine_mean
    assert 0 <= row.knn_top1 <= 1


def test_the_row_limit_stops_a_slow_row_with_a_reason(small):
    result = _harness(small, Settings(row_limit_s=0.0)).run([_job(_fake("slow"))])
    slow = result.row("slow")
    assert slow.status == "failed" and "the next run goes on" in slow.reason


def test_labels_that_the_model_does_not_have(small):
    _, reference, folder = small
    (folder / "images/labels.csv").write_text("file,label\n000.png,9\n001.png,0\n")
    result = _harness((DatasetSource(open_dataset(folder / "images"), PREPROCESS), None, folder)).run(
        [_job(Artifact("a", "onnxruntime", "fp32", reference.path))]
    )
    assert "labels go up to 9, but the model has 4 classes" in result.row("a").reason


def test_multi_label_rows_get_a_mean_average_precision(small):
    source, reference, folder = small
    lines = (folder / "images/labels.csv").read_text().splitlines()[1:]
    text = "\n".join(
        ["file,labels", *(line.replace(",", ",0;") if n % 3 == 0 else line for n, line in enumerate(lines))]
    )
    (folder / "images/labels.csv").write_text(text.replace(",0;0", ",0") + "\n")
    source = DatasetSource(open_dataset(folder / "images", class_count=4), PREPROCESS)
    assert source.labels.ndim == 2
    artifact = Artifact("a", "onnxruntime", "fp32", reference.path)
    row = _harness((source, reference, folder)).run([_job(artifact)]).row("a")
    assert 0 < row.f1 <= 1 and 0 <= row.exact_match <= 1
    assert row.status == "ok" and 0.5 < row.map <= 1 and row.delta_map == 0 and row.top1 is None


def test_throughput_and_sustained(small):
    settings = Settings(scenarios=("throughput", "sustained"), seconds=0.2, sustained_s=0.5, contexts=2, batch=4)
    artifact = Artifact("a", "onnxruntime", "fp32", write_classifier(small[2] / "free.onnx", batch="N"))
    row = _harness(small, settings).run([_job(artifact)]).row("a")
    assert row.status == "ok" and row.batch == 4 and row.throughput.contexts == 2
    assert row.throughput_ips > 0 and row.throughput.images % 4 == 0
    assert row.sustained.seconds >= 0.5 and row.sustained.latency_ms.n > 4
    assert row.latency_ms is None  # the single scenario was not asked for


def test_two_equal_artifacts_and_one_that_takes_twenty_times_as_long(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    from vitedge.bench.process import ArtifactProcess

    timed = {name: rounds.Timed() for name in ("a", "b", "long")}
    for _ in range(3):
        rows = {}
        try:
            for name, ms in (("a", 1), ("b", 1), ("long", 20)):
                rows[name] = ArtifactProcess(_fake(name, ms=ms), tmp_path / f"{name}.log")
                rows[name].open()
                rows[name].load(np.zeros((2, 8, 8, 3), np.uint8))
            rounds.time_launch(rows, timed, seconds=0.4, launches=3)
        finally:
            for row in rows.values():
                row.kill()
    assert all(len(one.launches) == 3 for one in timed.values())
    assert timed["a"].latency_ms().n >= 10 and timed["a"].latency_ms().min >= 1
    # Other processes may stretch any of these times by far, but not twentyfold.
    more = rounds.ratio(timed["long"], timed["a"])
    assert more.ratio > 3 and more.ci95[0] <= more.ratio <= more.ci95[1]
    same = rounds.ratio(timed["b"], timed["a"])
    assert same.ratio < more.ratio and same.launches == 3 and same.rounds >= 12
    assert rounds.ratio(timed["a"], rounds.Timed()) is None


def test_the_plan_of_rounds():
    assert rounds.plan(1e6, 3.0) == (20, 150)
    assert rounds.plan(250e6, 3.0) == (12, 1)
    assert rounds.plan(2e9, 3.0) == (10, 1)
    assert rounds.plan(1e6, 3.0, launches=5) == (4, 150)
    assert rounds.plan(2e9, 3.0, launches=5) == (2, 1)


def test_groups_fit_into_memory_with_the_base_in_each():
    jobs = [Job(_fake(str(k)), new_row(_fake(str(k)), peak_rss_mib=300.0)) for k in range(5)]
    names = [[job.artifact.name for job in group] for group in groups(jobs, jobs[0], 1000.0)]
    assert names == [["0", "1"], ["0", "2"], ["0", "3"], ["0", "4"]]
    assert [len(group) for group in groups(jobs, jobs[0], 1600.0)] == [4, 2]
    assert groups(jobs[:1], jobs[0], None) == [[jobs[0]]] and groups([], None, None) == []


def test_the_harness_needs_no_torch_and_no_onnx():
    code = (
        "import sys, vitedge.bench.child, vitedge.bench.stages, vitedge.cli.bench, vitedge.cli.pack\n"
        "import vitedge.cli.compare, vitedge.cli.report\n"
        "bad = {'torch', 'onnx', 'scipy', 'jinja2'} & set(sys.modules); assert not bad, bad"
    )
    import subprocess

    root = str(Path(__file__).parent.parent.parent)
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": root})
