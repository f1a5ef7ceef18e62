from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from vitedge.bench.schema import Latency, Row
from vitedge.report.pareto import front, recommend
from vitedge.report.svg import WIDTH, Axis, Point, fit, nice_step, scatter, strips


def test_the_pareto_front():
    assert front([1, 2, 3, 2], [0.5, 0.7, 0.6, 0.7]) == [True, True, False, True]
    assert front([], []) == []


def _row(name, p50, drop, size=1.0, **more):
    times = None if p50 is None else Latency(*[float(p50)] * 8, 10)
    return Row(artifact=name, status="ok", latency_ms=times, delta_top1=-drop / 100, size_mib=size, **more)


def test_the_recommendation_is_the_fastest_within_the_budget():
    rows = [_row("fp32", 50, 0), _row("int8", 30, 0.8), _row("wild", 10, 5), _row("bad", 1, 0, accepted=False)]
    rows += [_row("source", 0.1, 0, role="source")]
    assert recommend(rows)[0].artifact == "int8"
    assert recommend(rows, most_drop=0.5)[0].artifact == "fp32"
    assert recommend(rows, most_drop=10)[0].artifact == "wild"
    assert recommend(rows, most_ms=20)[0] is None
    simulated = [_row("a", None, 0, 9.0), _row("b", None, 0.5, 7.0)]
    best, why = recommend(simulated)
    assert best.artifact == "b" and "no latency was measured" in why
    assert recommend([])[0] is None


def test_axes_have_round_ticks_inside_their_range():
    assert nice_step(10) == 2 and nice_step(0.7) == 0.2
    linear, log = fit([3, 47], 0, 100), fit([1, 900], 0, 100, log=True)
    for axis in (linear, log):
        ticks = axis.ticks()
        assert 3 <= len(ticks) <= 12 and all(axis.low <= tick <= axis.high for tick in ticks)
    assert Axis(1, 100, 0, 10, log=True)(10) == pytest.approx(5)
    assert fit([5, 5], 0, 100)(5) == pytest.approx(50)


def test_a_scatter_is_valid_and_keeps_its_points_and_labels_inside():
    points = [Point(f"artifact-{k}", 10 + k, 70 - k / 10, 66, 74, front=k == 0, detail='<"&') for k in range(12)]
    root = ElementTree.fromstring(scatter(points, "ms", "top-1", "a < b"))
    circles = root.findall(".//circle")
    assert len(circles) == 12 and all(0 < float(one.get("cx")) < WIDTH for one in circles)
    assert sum("hollow" in one.get("class") for one in circles) == 11
    assert scatter([], "x", "y", "t") == ""


def test_strips_mark_the_percentiles():
    d = Latency(3.0, 1.0, 2.0, 3.0, 4.0, 6.0, 50.0, 1.0, 4, samples=(1.0, 2.0, 6.0, 50.0))
    text = strips([("one", 0, d)], "t")
    ElementTree.fromstring(text)
    assert len(re.findall('<line class="tail', text)) == 3 and text.count("v16") == 3
