from __future__ import annotations

from dataclasses import replace

import pytest

from vitedge.bench.gate import check_gates, parse_gates
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
