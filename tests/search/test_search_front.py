"""Fronts, budgets, the order of candidates, and what a candidate means as options."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from vitedge.condition.options import MASSIVE_DROP_FULL
from vitedge.config import RunConfig, make_config
from vitedge.cost.fit import spearman
from vitedge.cost.model import LatencyModel
from vitedge.errors import VitedgeError
from vitedge.files import write_json
from vitedge.search.evaluate import Measured
from vitedge.search.front import front_of, within
from vitedge.search.harm import Plan
from vitedge.search.options import Budget, SearchOptions, parse_budgets
from vitedge.search.predict import HOPELESS, POINTS_PER_NAT, Predicted, aimed, ordered, predict
from vitedge.search.result import FILE, Labelled, Point, SearchResult, read_labelled, steadied
from vitedge.search.space import DENSE, Candidate, Pruning, settings, space, variants
from vitedge.targets.openvino import TARGET as OPENVINO
from vitedge.targets.rknn import TARGET as RKNN
from vitedge.vit.block import Merge
from vitedge.vit.config import uniform

MODEL = uniform(image_size=64, patch_size=8, width=48, depth=4, heads=3, hidden=96, classes=10)


def test_a_front_holds_what_nothing_beats() -> None:
    rng = np.random.default_rng(0)
    items = [tuple(pair) for pair in rng.integers(0, 12, (60, 2))]
    found = front_of(items, cost=lambda one: one[0], loss=lambda one: one[1])
    for item in items:
        beaten = any(a <= item[0] and b <= item[1] and (a, b) != item for a, b in items)
        assert (item in found) == (not beaten)
    assert found == sorted(set(found))


def test_the_point_for_a_budget() -> None:
    # (cost, lost, error, agreement)
    items = [(10.0, 0.2, 0.1, 0.99), (6.0, 0.5, 0.3, 0.97), (5.0, 0.7, 0.4, 0.96), (3.0, 2.0, 0.4, 0.9)]

    def best(budget: Budget | None, drop: float):
        return within(
            items,
            budget,
            drop,
            cost=lambda one: one[0],
            drop=lambda one: (one[1], one[2]),
            agreement=lambda one: one[3],
        )

    assert best(Budget("p50-ms", 7), 1.0) == items[1]
    assert best(Budget("p50-ms", 5.5), 1.0) is None, "0.7 with its standard error 0.4 is more than a point"
    assert best(Budget("p50-ms", 5.5), 1.1) == items[2]
    assert best(None, 1.0) == items[1] and best(None, 5.0) == items[3]


def test_budgets() -> None:
    assert parse_budgets(("p50-ms=5", "p50-ms=20")) == [Budget("p50-ms", 20), Budget("p50-ms", 5)]
    for wrong in ("p50=5", "p50-ms", "p50-ms=-1", "size-mib=nan"):
        with pytest.raises(VitedgeError, match="is no budget"):
            parse_budgets((wrong,))
    with pytest.raises(VitedgeError, match="different kinds"):
        SearchOptions(budget=("p50-ms=5", "size-mib=3"))
    with pytest.raises(VitedgeError, match="range of shares"):
        SearchOptions(shares="0.5:0.2")


def test_a_candidate_is_its_options() -> None:
    candidate = Candidate(0.3, "macs", "tokens", False, "int8", "linear", 0.02)
    assert Candidate.from_dict(candidate.to_dict()) == candidate and len(candidate.key) == 12
    config = candidate.to_config(RunConfig(), "openvino")
    assert (config.prune.prune, config.prune.prune_by, config.steps.quantize) == (0.3, "tokens", "static")
    assert (config.quantize.preset, config.quantize.spare, config.prune.prune_target) == ("linear", 0.02, "openvino")
    stage = candidate.to_config(RunConfig(), "openvino", "prune")
    other = Candidate(0.3, "macs", "tokens", False, "fp32").to_config(RunConfig(), "openvino")
    assert stage == other, "candidates that prune alike share their float run"


def prunings() -> list[Pruning]:
    return [(share, *way) for way in settings(timed=True, mergeable=True) for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]


def test_the_space_has_no_candidate_twice() -> None:
    found = space(prunings(), variants(OPENVINO))
    assert len({one.key for one in found}) == len(found) == (6 * 10 + 1) * 6
    assert {by for _, by, _ in settings(timed=False, mergeable=False)} == {"widths"}


def predictions() -> list[Predicted]:
    latency = {
        name: LatencyModel(target="t", precision=name, coefficients={"linear": ns, "attention": 2 * ns}, source="")
        for name, ns in (("fp32", 4.0), ("int8", 1.0))
    }
    plans = {DENSE: Plan(MODEL, 0.0)}
    for pruning in prunings():
        left = round(MODEL.tokens * (1 - pruning[0] / 2))
        plans[pruning] = Plan(MODEL.with_block(1, merge=Merge(left)), pruning[0] ** 3 * (1 + pruning[3]))
    candidates = space(prunings(), [("fp32", ""), ("int8", "linear")])
    return predict(candidates, plans, latency, {"fp32": 0.0, "int8": 0.01}, MODEL, "p50-ms")


def test_plans_that_compute_the_same_count_once() -> None:
    found = predictions()
    assert len(found) == 7 * (1 + 3), "seven plans, in FP32 and in INT8 with three numbers of spared inputs"
    assert all(one.ms and one.kl >= 0 for one in found)


def test_any_beginning_of_the_order_is_spread_over_the_costs() -> None:
    found = predictions()
    order = ordered(found, points=6, budgets=[max(one.cost for one in found) / 3])
    assert sorted(one.candidate.key for one in order) == sorted(one.candidate.key for one in found)
    assert order == ordered(list(reversed(found)), points=6, budgets=[max(one.cost for one in found) / 3])
    assert [str(one.candidate) for one in order[:2]] == ["dense; int8", "dense; fp32"]
    assert max(one.cost for one in found) / 4 < order[2].cost <= max(one.cost for one in found) / 3
    first = [math.log(one.cost) for one in order[:4]]
    span = max(math.log(one.cost) for one in found) - min(math.log(one.cost) for one in found)
    assert max(first) - min(first) > 0.6 * span
    assert spearman([one.cost for one in order[:6]], [-one.kl for one in order[:6]]) > 0.99, "the front comes first"


def test_what_would_lose_far_too_much_comes_last_but_for_a_budget_that_asks_for_it() -> None:
    found = [replace(one, kl=100 * one.kl) for one in predictions()]
    limit = sorted(one.kl for one in found)[len(found) // 2]
    drop = limit * POINTS_PER_NAT / HOPELESS
    assert drop > 0.5
    order = [one.kl <= limit for one in ordered(found, 6, [], drop)]
    assert order == sorted(order, reverse=True) and not all(order)
    least = min(one.cost for one in found)
    first = next(one for one in ordered(found, 6, [least], drop) if one.candidate.share)
    assert first.cost == least and first.kl > limit


def test_a_budget_is_aimed_at_by_what_was_measured() -> None:
    found = [one for one in predictions() if not one.candidate.spare]
    order = ordered(found, points=6, budgets=[])
    int8 = {one.candidate.share: one for one in found if one.candidate.precision == "int8"}
    budget = int8[0.3].cost * 1.001
    assert aimed(order, {}, [budget]) == order, "nothing is known yet"
    assert aimed(order, {int8[0.0].candidate.key: int8[0.0].cost}, [budget])[0] == int8[0.3]
    # INT8 is measured to take longer than predicted, so that less of the predicted cost is within the budget.
    line = aimed(order, {int8[0.0].candidate.key: 1.03 * int8[0.0].cost}, [budget])
    assert line[0] == min((o for o in int8.values() if 1.03 * o.cost <= budget), key=lambda o: o.kl) != int8[0.3]
    assert line[1:] == [one for one in order if one != line[0]]
    # What was measured within the budget and lost too much leaves no hope for what should lose more.
    costs = {int8[share].candidate.key: int8[share].cost for share in (0.0, 0.6)}
    assert aimed(order, costs, [budget])[0] == int8[0.3]
    assert aimed(order, {**costs, int8[0.3].candidate.key: int8[0.3].cost}, [budget]) == order


def test_a_compiler_that_calibrates_by_itself_gets_its_own_preset_and_no_scheme() -> None:
    base = RunConfig()
    full = Candidate(0.3, "macs", "auto", False, "int8", "full")
    config = full.to_config(base, "rknn")
    assert (config.steps.quantize, config.steps.condition, config.build["rknn"]) == ("none", True, {"preset": "full"})
    assert config.condition.registers and config.condition.massive == MASSIVE_DROP_FULL
    linear = Candidate(0.3, "macs", "auto", False, "int8", "linear")
    assert linear.to_config(base, "rknn").build["rknn"] == {"preset": "balanced"}
    assert linear.to_config(base, "rknn").condition == base.condition
    # Conditioned beforehand or with everything else: the same.
    early, late = (full.to_config(base, "openvino", until).condition for until in ("condition", "quantise"))
    assert early == late == late.settled(True, None) and full.to_config(base, "openvino").steps.quantize == "static"
    assert {one.spare for one in space(prunings(), variants(RKNN), (0.0,))} == {0.0}


def measured(p50: float, ratio: float, **more) -> Measured:
    known = {"run": "r", "artifact": "a", "sha256": "", "accepted": True, "agreement": 0.9, "lost": 0.1, "error": 0.1}
    known |= {"kl": 0.1, "images": 10, "size_mib": 1.0, "macs": 1, "macs_share": 1.0, "machine": "here"}
    return Measured(**(known | {"p50_ms": p50, "ratio": ratio} | more))


def test_latencies_are_of_one_speed_of_the_machine() -> None:
    # The second was timed while the machine was half as fast.
    points = [
        Point(Candidate(s, "macs", "auto", False, "int8", "linear"), m)
        for s, m in (
            (0.1, measured(10.0, 0.5)),
            (0.2, measured(16.0, 0.4)),
            (0.3, measured(6.0, 0.3)),
            (0.4, measured(9.0, 0.3, host="b")),
        )
    ]
    assert [point.measured.p50_ms for point in steadied(points)] == pytest.approx([10.0, 8.0, 6.0, 9.0])


def test_predictions_are_held_against_measurements(tmp_path) -> None:
    points = [
        Point(
            Candidate(0.1 * n, "macs", "auto", False, "int8", "linear"),
            measured(10.0 - n, 0.5, predicted_ms=5.0 - n / 2, predicted_kl=n, agreement=1 - n / 10),
        )
        for n in range(5)
    ]
    found = SearchResult(tmp_path, SearchOptions(), points).rank_correlation
    assert found == pytest.approx({"latency": 1.0, "agreement": 1.0})


def test_figures_on_labelled_images_come_back_from_the_file(tmp_path) -> None:
    figures = Labelled(top1=0.9, delta_top1=-0.01, agreement=0.95, p50_ms=3.0, ratio=0.4, n=100)
    with_figures, without = (
        Point(Candidate(share, "macs", "auto", False, "int8", "linear"), measured(10.0, 0.5), one)
        for share, one in ((0.1, figures), (0.2, None))
    )
    options = SearchOptions(data="labelled", ssh="ssh -p 22")
    write_json(tmp_path / FILE, SearchResult(tmp_path, options, [with_figures, without]).to_dict())
    assert read_labelled(tmp_path / FILE, SearchOptions(data="labelled")) == {with_figures.candidate.key: figures}
    assert read_labelled(tmp_path / FILE, SearchOptions(data="other")) == {}


def test_build_options_reach_every_candidate() -> None:
    base = make_config({"build": {"onnxruntime": {"attention": "parts"}}})
    config = Candidate(0.3, "macs", "auto", False, "int8", "linear").to_config(base, "onnxruntime")
    assert config.target_options("onnxruntime").attention == "parts"
