"""Candidates measured on boards over SSH, which a script plays: one answers, one is away."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import vitedge
from vitedge.cost import store
from vitedge.cost.model import LatencyModel
from vitedge.reporter import Reporter

pytest.importorskip("optuna")
SSH = """#!/bin/sh
while [ "$1" != "--" ]; do shift; done
host=$2; shift 2
case "$host" in away*) echo "no route to host" >&2; exit 255;; esac
export HOME={home}/$host; mkdir -p "$HOME"; cd "$HOME"; exec sh -c "$*"
"""


class Log(Reporter):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)


def test_a_board_that_is_away_costs_nothing_but_its_own_time(
    tiny_folder, shapes_folder, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for precision, ns in (("fp32", 0.2), ("int8", 0.1)):
        costs = {"linear": ns, "attention": ns, "operator": 1000.0}
        store.keep(LatencyModel(target="onnxruntime", precision=precision, coefficients=costs, source="a test"), 32)
    ssh = tmp_path / "ssh"
    ssh.write_text(SSH.format(home=tmp_path / "boards"))
    ssh.chmod(0o755)
    log = Log()
    result = vitedge.search(
        tiny_folder,
        calib=str(shapes_folder),
        out=tmp_path / "out",
        target="onnxruntime",
        budget="p50-ms=1000",
        max_drop=100,
        trials=2,
        held_out=12,
        calib_size=24,
        recover="ridge",
        shares="0.2:0.4",
        seconds=0.1,
        host="me@one,away@two",
        ssh=str(ssh),
        remote_python=sys.executable,
        reporter=log,
    )
    assert len(result.points) == 2 and result.front
    assert {point.measured.host for point in result.points} == {"me@one"}
    assert all(point.measured.p50_ms for point in result.points)
    assert any("away@two" in line and "no route to host" in line for line in log.warnings)
    assert any("away@two is left out" in line for line in log.warnings) or len(log.warnings) == 1
    found = json.loads((tmp_path / "out" / "search.json").read_text())
    best = found["points"][found["best"]["p50-ms=1000"]]["measured"]
    benches = list((tmp_path / "out" / best["run"] / "bench").glob("*.json"))
    assert benches, "the board's result is in the run"
