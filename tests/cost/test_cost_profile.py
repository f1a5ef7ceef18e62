"""`vitedge profile`: fitted on this machine, read from a board's profile, or an estimate that says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import vitedge
from tests.command import vitedge as command
from tests.targets.rknn.test_rknn_latency import PERF
from vitedge.cost import store
from vitedge.cost.model import load
from vitedge.errors import VitedgeError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("precision", ["fp32", "int8-full"])
def test_a_target_that_runs_here_is_measured(tiny_folder: Path, precision: str) -> None:
    (found,) = vitedge.profile(tiny_folder, target="onnxruntime", precision=precision, plans=8, checks=4)
    assert found.measured_ms and found.measured_ms > 0 and found.dense_ms > 0
    model = load(found.file)
    assert model == found.model == store.find("onnxruntime", precision, None, 32)
    assert not model.estimated and model.plans == 8 and model.host["cores"] and model.versions["onnxruntime"]
    assert model.error_median is not None and 0 <= model.error_median <= model.error_most
    assert all(value > 0 for value in model.coefficients.values())


def test_a_board_that_is_not_here_is_estimated_or_read(tiny_folder: Path, tmp_path: Path) -> None:
    done = command(tmp_path, "profile", tiny_folder, "--target", "rknn", "--precision", "int8,fp16", "--json")
    int8, fp16 = json.loads(done.stdout)
    assert int8["model"]["estimated"] and int8["measured_ms"] is None and int8["dense_ms"] < fp16["dense_ms"]
    (tmp_path / "perf.txt").write_text(PERF)
    text = command(tmp_path, "profile", tiny_folder, "--target", "rknn", "--precision", "fp16", "--perf", "perf.txt")
    assert "a board (eval_perf" in text.stdout and "by this model" in text.stdout
    model = store.find("rknn", "fp16", None, 32)
    assert model is not None and not model.estimated


def test_a_precision_that_the_target_has_not(tiny_folder: Path) -> None:
    with pytest.raises(VitedgeError, match="has no precision 'bf16'"):
        vitedge.profile(tiny_folder, target="onnxruntime", precision="bf16")
