"""What a search found: its front, the points that meet the budgets, and the files that tell of it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import tomli_w

from vitedge import documents
from vitedge.config import COMMANDS, RunConfig, without_local
from vitedge.cost.fit import spearman
from vitedge.files import write_json, write_text
from vitedge.search.evaluate import Measured
from vitedge.search.front import front_of, within
from vitedge.search.options import WORDS, Budget, SearchOptions
from vitedge.search.predict import SearchPlan
from vitedge.search.space import Candidate
from vitedge.tables import Cell, Table

FILE = "search.json"
SCHEMA = 1
_KEPT = {*COMMANDS["compress"], "build"}


@dataclass(frozen=True)
class Labelled:
    """What `bench` says of an artifact on `n` labelled images; `ratio`: of its latency to FP32's."""

    top1: float | None
    delta_top1: float | None
    agreement: float | None
    p50_ms: float | None
    ratio: float | None
    n: int


@dataclass(frozen=True)
class Point:
    """A candidate that was measured; `bench`: figures on labelled images, where there are some."""

    candidate: Candidate
    measured: Measured
    bench: Labelled | None = None


def steadied(points: Sequence[Point]) -> list[Point]:
    """The points with latencies of one speed of their machine.

    A machine drifts over hours; each candidate was timed in turns with the model as it came. Their ratio, times what
    that model takes in the median, is the latency on the machine as it mostly was.
    """
    taken: dict[tuple[str, str], list[float]] = {}
    for m in (point.measured for point in points):
        if m.p50_ms and m.ratio:
            taken.setdefault((m.machine if not m.host else "", m.host), []).append(m.p50_ms / m.ratio)
    out = []
    for point in points:
        m = point.measured
        if m.p50_ms and m.ratio:
            usual = median(taken[m.machine if not m.host else "", m.host])
            point = replace(point, measured=replace(m, p50_ms=m.ratio * usual))
        out.append(point)
    return out


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        points: everything that was measured.
        plan: what was predicted, and by what.
        failed: name of a candidate -> why it could not be made.
    """

    root: Path
    options: SearchOptions
    points: Sequence[Point]
    plan: SearchPlan | None = None
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def kind(self) -> str:
        """What cost means here."""
        return self.options.cost_kind

    @property
    def front(self) -> list[Point]:
        """The points that no other beats in cost and agreement, the cheapest first. A build outside its tolerance is no
        point of it."""
        gated = [point for point in self.points if point.measured.accepted is not False]
        return front_of(gated, cost=self._cost, loss=lambda point: -point.measured.agreement)

    @property
    def best(self) -> dict[str, Point | None]:
        """Budget -> the point that meets it within --max-drop; without a budget, "cheapest"."""
        budgets: list[Budget | None] = list(self.options.budgets) or [None]
        gated = [point for point in self.points if point.measured.accepted is not False]
        return {
            str(budget or "cheapest"): within(
                gated,
                budget,
                self.options.max_drop,
                cost=self._cost,
                drop=lambda point: (point.measured.lost, point.measured.error),
                agreement=lambda point: point.measured.agreement,
            )
            for budget in budgets
        }

    @property
    def rank_correlation(self) -> dict[str, float]:
        """Spearman's, of what was predicted with what was measured: of the latency and of the agreement."""
        found = {}
        m = [point.measured for point in self.points]
        times = [(one.predicted_ms, one.p50_ms) for one in m if one.predicted_ms and one.p50_ms]
        losses = [(one.predicted_kl, -one.agreement) for one in m if one.predicted_kl is not None]
        for name, pairs in (("latency", times), ("agreement", losses)):
            if len(pairs) > 2:
                found[name] = spearman(*zip(*pairs, strict=True))
        return found

    def _cost(self, point: Point) -> float:
        return point.measured.cost(self.kind)

    def table(self) -> Table:
        """The front."""
        columns = ["candidate", "MACs", "p50 (ms)", "of FP32", "estimate (ms)", "vendor cycles (M)", "size (MiB)"]
        columns += ["agreement", "lost (points)", "±", "top-1", "meets", "run"]
        meets: dict[str, list[str]] = {}
        for budget, point in self.best.items():
            if point:
                meets.setdefault(point.candidate.key, []).append(budget)
        rows: list[list[Cell]] = []
        for point in self.front:
            m = point.measured
            row: list[Cell] = [str(point.candidate), m.macs_share, m.p50_ms, m.ratio, m.estimate_ms]
            row += [m.cycles / 1e6 if m.cycles else None, m.size_mib, m.agreement, m.lost, m.error]
            top1 = point.bench.top1 if point.bench else None
            rows.append([*row, top1, ", ".join(meets.get(point.candidate.key, [])) or None, m.run])
        images = self.points[0].measured.images if self.points else 0
        considered = self.plan.considered if self.plan else 0
        note = (
            f"{len(self.points)} of {considered:,} candidates were made and measured. Agreement "
            f"and points lost of top-1 (by the model's own probabilities) are of {images} calibration images that "
            "nothing was fitted to."
        )
        if any(point.measured.estimate_ms for point in self.points):
            note += f" Estimates are not measured: {self.plan.latency_source if self.plan else ''}"
        if ranked := self.rank_correlation:
            shown = ", ".join(f"{name} {value:.2f}" for name, value in ranked.items())
            note += f" Rank correlation of predictions with measurements: {shown}."
        if not any(self.best.values()):
            note += f" None meets the budget within {self.options.max_drop:g} points, the standard error counted."
        digits = {"MACs": 3, "p50 (ms)": 2, "of FP32": 3, "agreement": 3, "lost (points)": 2, "±": 2, "top-1": 3}
        digits |= {"estimate (ms)": 2, "vendor cycles (M)": 3, "size (MiB)": 2}
        title = f"Front by {WORDS[self.options.cost_kind]} and agreement"
        return Table(title, columns, rows, note, "search", decimals=digits).without_empty()

    def steps_table(self) -> Table:
        """What each candidate took."""
        stages = sorted({stage for point in self.points for stage in point.measured.seconds})
        rows = [[str(p.candidate), *(p.measured.seconds.get(s) for s in stages)] for p in self.points]
        columns = ["candidate", *(f"{stage} (s)" for stage in stages)]
        return Table("What the candidates took", columns, rows, "A stage that candidates share is made once.", "search")

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return {
            "schema": SCHEMA,
            "options": _shown(self.options),
            "front": [point.candidate.key for point in self.front],
            "best": {budget: point and point.candidate.key for budget, point in self.best.items()},
            "points": {
                point.candidate.key: {
                    "name": str(point.candidate),
                    "candidate": point.candidate.to_dict(),
                    "measured": point.measured.to_dict(),
                    "bench": asdict(point.bench) if point.bench else {},
                }
                for point in self.points
            },
            "failed": self.failed,
            "rank_correlation": self.rank_correlation,
            "plan": self.plan.facts() if self.plan else {},
            "seconds": round(self.seconds, 1),
        }

    def write(self, base: RunConfig) -> None:
        """`search.json`, and a recipe for each point of the front, so that a kill leaves a valid front."""
        write_json(self.root / FILE, self.to_dict())
        names = set()
        for point in self.front:
            name = f"{point.candidate.key}.toml"
            names.add(name)
            write_text(self.root / "recipes" / name, recipe(point, base, self.options))
        for old in (self.root / "recipes").glob("*.toml"):
            if old.name not in names and len(old.stem) == 12:
                old.unlink(missing_ok=True)


def read_labelled(file: Path, options: SearchOptions) -> dict[str, Labelled]:
    """Key -> figures on labelled images in such a `search.json`; none where it was asked for something else."""
    found = documents.read_json(file)
    if found["options"] != _shown(options):
        return {}
    return {key: Labelled(**one["bench"]) for key, one in found["points"].items() if one["bench"]}


def _shown(options: SearchOptions) -> Any:
    """The options without what is of this machine alone, as JSON holds them."""
    return options.model_dump(mode="json", exclude={"ssh", "remote_python"})


def recipe(point: Point, base: RunConfig, options: SearchOptions) -> str:
    """A configuration for `vitedge compress --config` that makes the point's run again."""
    config = point.candidate.to_config(base, options.target)
    kept = config.model_dump(mode="json", exclude_none=True, include=_KEPT)
    platform = f" --platform {options.platform}" if options.platform else ""
    return (
        f"# {point.candidate}\n# vitedge compress --config THIS --run DIR\n# vitedge build --run DIR --target "
        f"{options.target} --precision {point.candidate.precision}{platform}\n\n" + tomli_w.dumps(without_local(kept))
    )
