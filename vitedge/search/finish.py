"""The last step of a search: the front benched on labelled images where there are some, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vitedge.bench.jobs import Settings
from vitedge.bench.measure import BenchRequest, bench_bundle
from vitedge.bundle import Bundle
from vitedge.config import RunConfig
from vitedge.errors import VitedgeError
from vitedge.files import write_json
from vitedge.report.write import write_report
from vitedge.reporter import Reporter
from vitedge.search import quiet
from vitedge.search.result import Point, SearchResult
from vitedge.tables import to_json

ANALYSIS = "analysis/95-search.json"


def finish(result: SearchResult, base: RunConfig, reporter: Reporter) -> SearchResult:
    """The result with what `bench` says of its front; writes `search.json`, recipes, and `report.html` of the best
    point's run, which has a section on the search."""
    if not result.points:
        return result
    if result.options.data and not result.options.host:
        result = replace(result, points=_benched(result, reporter))
    result.write(base)
    best = next((point for point in result.best.values() if point), None) or result.front[:1]
    for point in {p.candidate.key: p for p in [*result.best.values(), *result.front[:1]] if p}.values():
        _tell_run(result, point)
    chosen = best if isinstance(best, Point) else (best[0] if best else None)
    if chosen and (result.root / chosen.measured.run / "manifest.json").is_file():
        try:
            write_report(
                Bundle.open(result.root / chosen.measured.run),
                result.root / "report.html",
                max_drop=result.options.max_drop,
                max_ms=None,
                reporter=reporter,
            )
        except VitedgeError as error:  # such as jinja2 that is not installed
            reporter.warn(f"the report was not written: {error.what} {error.todo}")
    return result


def _benched(result: SearchResult, reporter: Reporter) -> Sequence[Point]:
    """All points, those of the front with the figures of `bench` on the labelled images."""
    front = {point.candidate.key for point in result.front}
    found = []
    for point in result.points:
        run = result.root / point.measured.run
        if point.candidate.key in front and (run / "manifest.json").is_file():
            try:
                point = replace(point, bench=_bench(result, run, reporter))
            except VitedgeError as error:
                reporter.warn(f"{point.candidate}: {error.what} {error.why}")
        found.append(point)
    return found


def _bench(result: SearchResult, run: Any, reporter: Reporter) -> dict[str, Any]:
    options = result.options
    settings = Settings(seconds=max(1.0, options.seconds), launches=3, threads=options.threads)
    request = BenchRequest(data=options.data, limit=options.limit)
    with quiet.measuring():
        measured = bench_bundle(Bundle.open(run), request, settings, reporter)
    row = next((one for one in measured.rows if one.role == "artifact" and one.ok), None)
    if row is None:
        return {}
    ratio = row.latency_ratio.ratio if row.latency_ratio else None
    return {
        "top1": row.top1,
        "delta_top1": row.delta_top1,
        "agreement": row.agreement,
        "p50_ms": row.p50_ms,
        "ratio": ratio,
        "n": measured.data.n,
    }


def _tell_run(result: SearchResult, point: Point) -> None:
    """The tables of the search, in the report of a run that it made."""
    run = result.root / point.measured.run
    if not (run / "manifest.json").is_file():  # made on another machine
        return
    bundle = Bundle.open(run)
    with bundle.lock():
        write_json(run / ANALYSIS, to_json(result.table(), result.steps_table(), step="search"))
        bundle.record("search", [ANALYSIS], ["model/model.safetensors"])
