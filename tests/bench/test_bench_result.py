"""The bench JSON: one schema, published, read back as it was written; older files are read, edited ones are refused."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest

from vitedge.bench import schema, stats
from vitedge.bench.result import BenchResult, load, parse
from vitedge.bench.schema import Data, Latency, Row
from vitedge.errors import VitedgeError
from vitedge.host import facts
from vitedge.host.facts import Host

PUBLISHED = Path(schema.__file__).with_name("bench.schema.json")


def _result() -> BenchResult:
    latency = Latency(**vars(stats.summary(np.arange(1.0, 40))), rounds=4, launches=2, samples=(1.0, 2.0))
    row = Row(artifact="a", target="t", status="ok", latency_ms=latency, top1=0.5, top1_ci95=(0.4, 0.6), size_mib=2.0)
    return BenchResult((row, Row(artifact="b", reason="hung")), host=facts.facts(), data=Data(path="d", n=3))


def test_the_published_schema_is_that_of_the_types():
    """Made by `python -m vitedge.bench.schema > vitedge/bench/bench.schema.json`."""
    assert json.loads(PUBLISHED.read_text()) == json.loads(json.dumps(schema.json_schema()))


def test_what_is_written_keeps_to_the_schema_and_comes_back_as_it_was(tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    made = _result()
    made.write(tmp_path / "r.json")
    value = json.loads((tmp_path / "r.json").read_text())
    jsonschema.validate(value, json.loads(PUBLISHED.read_text()))
    assert value["schema"] == 2 and load(tmp_path / "r.json").rows == made.rows
    assert load(tmp_path / "r.json").to_dict() == value


def test_units_stand_in_the_names():
    """Every figure that is no share, count or plain word names its unit."""
    plain = {"mean", "min", "p50", "p90", "p95", "p99", "max", "std", "n", "rounds", "launches", "samples", "ratio"}
    plain |= {"ece", "map", "f1", "exact_match", "agreement", "top1", "top5", "delta_top1", "delta_map", "mcnemar_p"}
    plain |= {"cosine_mean", "cosine_worst", "recall_at_5", "overlap_at_5", "knn_top1", "probe_top1"}
    plain |= {"load", "first"}  # inside cold_start_ms
    plain |= {"difference"}  # a share of the logits' range
    for kind in vars(schema).values():
        if is_dataclass(kind):
            for one in fields(kind):
                if "float" in str(one.type) and one.name not in plain and "ci95" not in one.name:
                    units = ("_ms", "_mib", "_mj", "_s", "_db", "_nats", "_ips", "_celsius", "_mhz")
                    units += ("_drift", "_ms_by_part")
                    known = ("seconds", "watts", "mj_per_image", "celsius", "seconds_taken")
                    assert one.name.endswith(units) or one.name in known, f"{kind.__name__}.{one.name}"


def test_a_file_of_the_first_schema_is_read(tmp_path):
    old = {
        "schema": 1,
        "host": {"cpu": "chip", "cores": 2, "clusters": [], "gpus": [], "name": None},
        "data": {"path": "d", "n": 500, "sha256": "x", "skipped": []},
        "settings": {"scenarios": ["single"], "batch": 1, "started": "2025-01-01T00:00:00Z", "seconds_taken": 3.0},
        "reference": {"artifact": "fp32-reference", "top1": 0.7, "top1_ci95": [0.6, 0.8], "kl": 0.0},
        "rows": [{"artifact": "a", "status": "ok", "reason": "", "top1": 0.6, "kl": 0.02, "delta_top1": -0.1}],
    }
    (tmp_path / "old.json").write_text(json.dumps(old))
    found = load(tmp_path / "old.json")
    assert found.row("a").kl_nats == 0.02 and found.row("a").drop_points == pytest.approx(10)
    assert found.rows[0].role == "source" and found.rows[0].top1 == 0.7 and found.reference == "source"
    assert found.started == "2025-01-01T00:00:00Z" and found.settings.batch == 1 and found.host.cores == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda v: v | {"schema": 9},
        lambda v: v | {"rows": {}},
        lambda v: v | {"rows": [7]},
        lambda v: v | {"host": 3},
        lambda v: v | {"rows": [v["rows"][0] | {"top1": "high"}]},
        lambda v: v | {"rows": [v["rows"][0] | {"latency_ms": {"p50": 1}}]},
        lambda v: v | {"digest": ""},
        lambda v: [v],
        lambda v: v | {"schema": 1, "rows": [None], "reference": 4, "settings": 7},
    ],
)
def test_what_is_no_result_or_was_edited_is_refused(damage):
    with pytest.raises(VitedgeError):
        parse(damage(_result().to_dict()), "r.json")


def test_a_figure_that_was_edited_is_refused():
    value = json.loads(json.dumps(_result().to_dict()))
    value["rows"][0]["top1"] = 0.9
    with pytest.raises(VitedgeError, match="was changed after vitedge wrote it"):
        parse(value, "r.json")


def test_a_result_is_read_in_a_notebook():
    made = _result()
    assert "a: ok, top-1 50.0 %, p50 20.00 ms" in repr(made) and "b: failed" in repr(made)
    html = made._repr_html_()
    assert "<table" in html and "top-1 (%)" in html and "<script" not in html
    frame = pytest.importorskip("pandas") and made.to_dataframe()
    assert list(frame["artifact"]) == ["a", "b"] and frame["latency_ms.p50"][0] == 20
    assert made.broken_gates("p50-ms=10") == ["b failed: hung", "a: 20 ms p50, at most 10 is asked"]
    assert isinstance(made.host, Host) and made.row("none") is None
