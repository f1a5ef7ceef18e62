from __future__ import annotations

from dataclasses import replace

import pytest

from vitedge.bench.gate import check_gates, parse_gates, pick
from vitedge.bench.schema import Latency, Row
from vitedge.errors import VitedgeError

TIMES = Latency(*[19.0] * 8, 10)
ROW = Row(artifact="a", status="ok", delta_top1=-0.004, latency_ms=TIMES, agreement=0.97)


def test_limits_are_kept_or_broken():
    assert check_gates(parse_gates("top1-drop=0.5, p50-ms=20,agreement=95"), [ROW]) == []
    broken = check_gates(parse_gates("top1-drop=0.3,p50-ms=18,agreement=98"), [ROW])
    assert [line.split(":")[0] for line in broken] == ["a"] * 3
    assert "0.4 points of top-1 below FP32, at most 0.3 is asked" in broken[0]


def test_failed_rows_break_a_gate_and_unmeasured_figures_can_not_pass_it():
    failed = Row(artifact="b", status="failed", reason="hung")
    elsewhere = Row(artifact="c", status="unavailable", reason="no board")
    simulator = replace(ROW, latency_ms=None)
    assert check_gates(parse_gates("p50-ms=20"), [ROW, failed, elsewhere]) == ["b failed: hung"]
    assert check_gates(parse_gates("p50-ms=20"), [ROW, simulator]) == []
    assert "nothing was checked" in check_gates(parse_gates("p50-ms=20"), [simulator])[0]
    assert check_gates([], [failed]) == []


def test_the_source_model_is_held_to_no_limit():
    source = replace(ROW, role="source", artifact="source", latency_ms=Latency(*[99.0] * 8, 10))
    assert check_gates(parse_gates("p50-ms=20"), [source, ROW]) == []
    assert "nothing was checked" in check_gates(parse_gates("p50-ms=20"), [source])[0]


@pytest.mark.parametrize("text", ["p50=20", "p50-ms", "p50-ms=fast", "top1-drop=nan"])
def test_what_is_no_gate_is_refused(text):
    with pytest.raises(VitedgeError):
        parse_gates(text)


def test_the_best_within_the_limits_is_picked() -> None:
    def row(name: str, top1: float, p50: float, **more) -> Row:
        latency = Latency(*[p50] * 8, 10)
        return Row(artifact=name, status="ok", top1=top1, delta_top1=top1 - 0.8, latency_ms=latency, **more)

    rows = [row("large", 0.8, 30), row("middle", 0.79, 15), row("small", 0.75, 5), row("source", 0.8, 3, role="source")]
    picked = [pick(parse_gates(f"p50-ms={most}"), rows) for most in (40, 20, 10, 4)]
    assert [one and one.artifact for one in picked] == ["large", "middle", "small", None]
    assert pick(parse_gates("p50-ms=20,top1-drop=2"), rows).artifact == "middle"
    assert pick(parse_gates("p50-ms=10,top1-drop=2"), rows) is None
