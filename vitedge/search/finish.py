"""The last step of a search: the front benched on labelled images where there are some, and the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from vitedge.bench.jobs import Settings
from vitedge.bench.measure import BenchRequest, bench_bundle
from vitedge.bundle import Bundle
from vitedge.config import RunConfig
from vitedge.errors import VitedgeError
from vitedge.files import write_json
from vitedge.manifest import MANIFEST
from vitedge.report.write import write_report
from vitedge.reporter import Reporter
from vitedge.search import quiet
from vitedge.search.family import FAMILY, write_family
from vitedge.search.folders import Folders
from vitedge.search.result import FILE, Labelled, Point, SearchResult, read_labelled
from vitedge.tables import to_json

ANALYSIS = "analysis/95-search.json"


def finish(current: Callable[[], SearchResult], folders: Folders, base: RunConfig, reporter: Reporter) -> SearchResult:
    """The result with what `bench` says of its front; writes `search.json`, recipes, and `report.html` of the best
    point's run, which has a section on the search.

    Workers that end together do this one after the other, and take over what the one before them has benched.

    Args:
        current: what all workers have measured until now.
    """
    asked = time.time()
    with folders.held(folders.root / "finish"):
        result = current()
        if not result.points:
            return result
        benched: dict[str, Labelled] = {}
        if result.options.data and not result.options.host:
            benched = _bench_front(result, _benched_since(asked, result), reporter)
        with folders.held(folders.root / FILE):
            result = current()
            points = [replace(point, bench=benched.get(point.candidate.key)) for point in result.points]
            result = replace(result, points=points)
            result.write(base)
        told = [point for point in (*result.best.values(), *result.front[:1]) if point]
        for point in {one.candidate.key: one for one in told}.values():
            _tell_run(result, point)
        if names := write_family(result):
            run = result.root / FAMILY
            reporter.info(f"family of {len(names)}: vitedge bench --run {run} --data DIR --gate p50-ms=20 --pick")
        _report(result, told[0], reporter)
    return result


def _report(result: SearchResult, point: Point, reporter: Reporter) -> None:
    """`report.html` of the search: that of the point's run."""
    run = result.root / point.measured.run
    if not (run / MANIFEST).is_file():  # made on another machine
        return
    try:
        if not list((run / "bench").glob("*.json")):
            _latency_alone(result, point, reporter)
        out = result.root / "report.html"
        write_report(Bundle.open(run), out, max_drop=result.options.max_drop, max_ms=None, reporter=reporter)
    except VitedgeError as error:  # such as jinja2 that is not installed
        reporter.warn(f"the report was not written: {error.what} {error.todo}")


def _benched_since(asked: float, result: SearchResult) -> Mapping[str, Labelled]:
    """Key -> figures of the points that another worker has benched since then, asked for the same."""
    file = result.root / FILE
    return read_labelled(file, result.options) if file.is_file() and file.stat().st_mtime > asked else {}


def _bench_front(result: SearchResult, known: Mapping[str, Labelled], reporter: Reporter) -> dict[str, Labelled]:
    """Key -> figures of `bench` on the labelled images, of the front's points; those that are known are taken over."""
    found = {}
    for point in result.front:
        key, run = point.candidate.key, result.root / point.measured.run
        if (labelled := known.get(key)) is None and (run / MANIFEST).is_file():
            try:
                labelled = _bench(result, run, reporter)
            except VitedgeError as error:
                reporter.warn(f"{point.candidate}: {error.what} {error.why}")
        if labelled is not None:
            found[key] = labelled
    return found


def _bench(result: SearchResult, run: Path, reporter: Reporter) -> Labelled | None:
    options = result.options
    settings = Settings(seconds=max(1.0, options.seconds), launches=3, threads=options.threads)
    request = BenchRequest(data=options.data, limit=options.limit)
    with quiet.measuring():
        measured = bench_bundle(Bundle.open(run), request, settings, reporter)
    row = next((one for one in measured.rows if one.role == "artifact" and one.ok), None)
    if row is None:
        return None
    ratio = row.latency_ratio.ratio if row.latency_ratio else None
    return Labelled(row.top1, row.delta_top1, row.agreement, row.p50_ms, ratio, measured.data.n)


def _latency_alone(result: SearchResult, point: Point, reporter: Reporter) -> None:
    """What the report needs at least: the artifact opened, and timed where it can be."""
    settings = Settings(accuracy=False, seconds=result.options.seconds, launches=1, threads=result.options.threads)
    with quiet.measuring():
        bench_bundle(Bundle.open(result.root / point.measured.run), BenchRequest(), settings, reporter)


def _tell_run(result: SearchResult, point: Point) -> None:
    """The tables of the search, in the report of a run that it made."""
    run = result.root / point.measured.run
    if not (run / MANIFEST).is_file():  # made on another machine
        return
    bundle = Bundle.open(run)
    with bundle.lock():
        write_json(run / ANALYSIS, to_json(result.table(), result.steps_table(), step="search"))
        bundle.record("search", [ANALYSIS], ["model/model.safetensors"])
