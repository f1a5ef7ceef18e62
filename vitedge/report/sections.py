"""The parts of the page, as plain values for its template."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vitedge.bench import show
from vitedge.bench.result import BenchResult
from vitedge.bench.schema import Row
from vitedge.manifest import StepEntry
from vitedge.report import pareto
from vitedge.report.collect import Facts
from vitedge.report.html_table import table_html
from vitedge.report.svg import Point, scatter
from vitedge.report.svg import strips as latency_strips
from vitedge.tables import Cell, Table

_HOW_TO_READ = "Faint marks are single inferences; the box goes from p50 to p90, then come p95 and p99 (dashed)."


@dataclass(frozen=True)
class Plot:
    """An SVG and what it shows."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Machine:
    """The results and the environment of one machine; `tables` are HTML."""

    line: str
    data: str
    how: str
    tables: list[str]
    failed: list[str]
    facts: list[tuple[str, str]]


def overview(result: BenchResult) -> Table:
    """What each artifact costs and saves against the source model, in one table."""
    source = next((row for row in result.ok if row.role == "source"), None)
    columns = ["artifact", "top-1 (%)", "p50 (ms)", "speed-up", "size (MiB)", "times smaller"]
    columns += ["against source (points)", "agreement (%)"]
    rows: list[list[Cell]] = []
    for row in result.ok:
        faster = _over(source.p50_ms if source else None, row.p50_ms)
        smaller = _over(source.size_mib if source else None, row.size_mib)
        lost = None if row.role == "source" or row.drop_points is None else -row.drop_points
        quality = show.percent(row.top1 if row.top1 is not None else row.map)
        agreement = show.percent(row.agreement) if row.role == "artifact" else None
        rows.append([row.artifact, quality, row.p50_ms, faster, row.size_mib, smaller, lost, agreement])
    digits = dict.fromkeys(columns[1:], 1) | {"p50 (ms)": 2, "speed-up": 2, "times smaller": 2}
    return Table("", columns, rows, bars=["p50 (ms)", "size (MiB)"], decimals=digits).without_empty()


def _over(source: float | None, own: float | None) -> float | None:
    return source / own if source and own else None


def machine(result: BenchResult) -> Machine:
    """The results of one machine, rows on the Pareto front in bold."""
    bold = [at for at, front in enumerate(_on_front(result.ok)) if front]
    tables = [table_html(table, level=4, bold=bold) for table in show.tables(result)]
    s = result.settings
    how = f"Latency: {', '.join(s.scenarios)}; at least {s.seconds:g} s and 10 runs each, in turns." if s else ""
    if threads := sorted({str(row.threads) for row in result.ok if row.threads}):
        how += f" Threads: {', '.join(threads)}."
    known = {**asdict(result.host), **(asdict(s) if s else {})}
    facts = [(key.replace("_", " "), plain(value)) for key, value in known.items() if value not in (None, (), "", {})]
    return Machine(show.host_line(result.host), show.data_line(result), how, tables, show.failures(result), facts)


def _on_front(rows: tuple[Row, ...]) -> list[bool]:
    timed = [row for row in rows if row.p50_ms is not None and _quality(row) is not None]
    flags = pareto.front([row.p50_ms or 0.0 for row in timed], [_quality(row) or 0.0 for row in timed])
    best = {id(row) for row, flag in zip(timed, flags, strict=True) if flag}
    return [id(row) in best for row in rows]


def _quality(row: Row) -> float | None:
    """The source model agrees with itself."""
    return 1.0 if row.quality is None and row.role == "source" else row.quality


def plots(facts: Facts, colors: dict[str, int]) -> list[Plot]:
    """Quality against latency and against size, over all machines."""
    out = []
    several = len(facts.results) > 1
    if all(row.quality is None for row in facts.measured):
        return []  # the source agrees with itself: that is no figure
    for name, unit, caption in (("p50", "ms", "latency"), ("size", "MiB", "size")):
        rows: list[tuple[Row, str, float]] = []
        for host, result in facts.results.items():
            for row in result.ok:
                cost = row.p50_ms if unit == "ms" else row.size_mib
                if cost is not None and _quality(row) is not None:
                    rows.append((row, f" @ {host}" if several else "", cost))
        flags = pareto.front([cost for _, _, cost in rows], [_quality(row) or 0.0 for row, _, _ in rows])
        points = []
        for (row, host, cost), flag in zip(rows, flags, strict=True):
            good = 100 * (_quality(row) or 0.0)
            low, high = row.top1_ci95 or (None, None)
            points.append(
                Point(
                    row.artifact + host,
                    cost,
                    good,
                    low=None if low is None else 100 * low,
                    high=None if high is None else 100 * high,
                    color=colors[row.target],
                    front=flag,
                    detail=f"{row.artifact}{host}\n{good:.1f} %, {name} {cost:.2f} {unit}",
                )
            )
        if points:
            kind = "top-1 (%)" if any(row.top1 is not None for row, _, _ in rows) else "agreement with the source (%)"
            svg = scatter(points, f"{name} ({unit})", kind, f"{kind} against {caption}")
            text = f"{kind[0].upper()}{kind[1:]} against {caption}; bars are 95 % intervals, the line the Pareto front."
            out.append(Plot(svg, text))
    return out


def strips(facts: Facts, colors: dict[str, int]) -> list[Plot]:
    """Each machine's latency distributions."""
    out = []
    for result in facts.results.values():
        rows = [(row.artifact, colors[row.target], row.latency_ms) for row in result.ok if row.latency_ms]
        if rows:
            caption = f"{show.host_line(result.host)}. {_HOW_TO_READ}"
            out.append(Plot(latency_strips(rows, "latency distributions"), caption))
    return out


def stages(facts: Facts) -> list[Table]:
    """The way from an image file, where it was timed."""
    rows: list[list[Cell]] = []
    for row in facts.measured:
        if found := row.stages_ms:
            parts = (found.preprocess, found.inference, found.postprocess, found.end_to_end)
            rows.append([row.artifact, *(part.p50 for part in parts)])
    columns = ["artifact", "decode and resize (ms)", "inference (ms)", "softmax and top 5 (ms)", "end to end (ms)"]
    note = "From an image file to names of classes, one image at a time, as it is: p50."
    return [Table("The way from a file", columns, rows, note, decimals=dict.fromkeys(columns, 3))] if rows else []


@dataclass(frozen=True)
class StepFacts:
    """One step of the lineage."""

    name: str
    summary: str
    facts: list[tuple[str, str]]


def step(name: str, step: StepEntry, facts: Facts) -> StepFacts:
    """How a step was made and what it wrote."""
    shown = [("options", plain(step.options)), ("tools", plain(step.tools))]
    shown += [("facts", plain(step.facts)), ("made from", ", ".join(step.inputs) or "outside files")]
    for path in step.outputs:
        entry = facts.artifacts.get(path)
        shown.append((path, f"{entry.bytes:,} bytes, sha256 {entry.sha256}" if entry else "0 bytes, sha256 ?"))
    summary = f"{len(step.outputs)} files, {step.seconds} s"
    return StepFacts(name, summary, [(k, v) for k, v in shown if v not in ("", "{}", "None")])


def plain(value: Any) -> str:
    """A value of a document in a line."""
    if isinstance(value, dict):
        return ", ".join(f"{str(key).replace('_', ' ')}: {plain(v)}" for key, v in value.items() if v is not None)
    if isinstance(value, (list, tuple)):
        return "; ".join(plain(one) for one in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
