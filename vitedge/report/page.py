"""report.html: one file that needs no network, from the facts of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from vitedge import __version__
from vitedge.bench import show
from vitedge.bench.result import BenchResult
from vitedge.bench.schema import Row
from vitedge.errors import missing_package
from vitedge.report import pareto, sections
from vitedge.report.attention import AttentionMaps
from vitedge.report.collect import Facts, commands
from vitedge.report.html_table import matrix_html, table_html

_COLORS = 6


@dataclass(frozen=True)
class Card:
    """One figure of the artifact to take: what it is, how it compares with the source model's, and whether that is a
    gain, a loss, or neither."""

    name: str
    value: str
    note: str
    verdict: str = ""


def render(
    facts: Facts, *, most_drop: float = 1.0, most_ms: float | None = None, attention: AttentionMaps | None = None
) -> str:
    """The page's HTML.

    Raises:
        VitedgeError: jinja2 is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise missing_package("jinja2", "report", "The report") from error
    folder = resources.files("vitedge.report") / "templates"
    template, css, js = ((folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["table"] = lambda table: Markup(table_html(table))
    environment.filters["matrix"] = lambda one: Markup(matrix_html(one.names, one.matrix))
    environment.filters["raw"] = Markup
    ok = facts.measured
    pick, why = pareto.recommend(ok, most_drop, most_ms)
    colors = _colors(ok)
    results = list(facts.results.values())
    context: dict[str, object] = {
        "title": f"vitedge: {_origin(facts)}",
        "subtitle": " ".join(dict.fromkeys(show.data_line(result) for result in results)),
        "css": css,
        "js": js,
        "pick": pick,
        "why": why,
        "pick_what": _what(pick, facts) if pick else "",
        "budget_drop": f"{most_drop:g}",
        "cards": _cards(pick, ok),
        "notes": _notes(facts, ok),
        "overviews": [_overview(result, pick, len(results) > 1) for result in results],
        "machines": [sections.machine(result) for result in results],
        "plots": sections.plots(facts, colors),
        "legend": [(name or "source model", color) for name, color in colors.items()],
        "strips": sections.strips(facts, colors),
        "stages": sections.stages(facts),
        "tables": facts.tables,
        "problems": facts.problems,
        "flips": facts.flips,
        "classes": sorted(facts.classes, key=lambda one: pick is None or one.artifact != pick.artifact),
        "attention": attention,
        "training": facts.training,
        "lineage": [sections.step(name, step, facts) for name, step in facts.steps.items()],
        "commands": commands(facts),
        "footer": f"Made by vitedge {__version__}. Units: ms = milliseconds, MiB = 2^20 bytes, mJ = millijoules.",
        "rows_json": _embed([_for_script(row, facts) for row in pareto.candidates(ok)]),
    }
    names = {"summary": "Summary", "plots": "Plots", "results": "All figures", "classes": "Classes", "flips": "Changes"}
    names |= {"attention": "Attention", "latency": "Latency", "training": "Training", "analysis": "Layers"}
    names |= {"lineage": "Lineage"}
    names |= {"commands": "Commands", "environment": "Environment"}
    shown: dict[str, object] = {"plots": context["plots"], "latency": context["strips"], "classes": facts.classes}
    shown |= {"flips": facts.flips, "attention": attention, "analysis": facts.tables or facts.problems}
    shown |= {"training": facts.training}
    context["sections"] = [(key, name) for key, name in names.items() if shown.get(key, True)]
    return environment.from_string(template).render(**context)


def _overview(result: BenchResult, pick: Row | None, several: bool) -> str:
    table = sections.overview(result)
    table = replace(table, title=show.host_line(result.host)) if several else table
    bold = [at for at, row in enumerate(result.ok) if pick is not None and row.artifact == pick.artifact]
    return table_html(table, bold=bold, sortable=False)


def _colors(rows: Sequence[Row]) -> dict[str, int]:
    """Target -> number of its colour."""
    return {name: at % _COLORS for at, name in enumerate(dict.fromkeys(row.target for row in rows))}


def _origin(facts: Facts) -> str:
    for name in ("import", "source"):
        if origin := facts.reported(name, "origin"):
            return str(origin).split("/")[-2 if str(origin).count("/") else 0].split(" ")[0]
    return facts.root.resolve().name


def _cards(pick: Row | None, ok: Sequence[Row]) -> list[Card]:
    """What the artifact to take costs and saves."""
    if pick is None:
        return []
    source = next((row for row in ok if row.role == "source"), None)
    out = []
    lost = pick.drop_points
    if pick.top1 is not None:
        low, high = pick.top1_ci95 or (0.0, 1.0)
        note = f"95 %: {100 * low:.1f} to {100 * high:.1f}"
        if pick.delta_top1 is not None and pick.delta_ci95:
            lower, upper = (f"{100 * one:+.1f}" for one in pick.delta_ci95)
            note = f"{100 * pick.delta_top1:+.1f} points against the source, 95 %: {lower} to {upper}"
        verdict = _verdict(pick.delta_ci95[1] < 0, pick.delta_ci95[0] > 0) if pick.delta_ci95 else ""
        out.append(Card("top-1", f"{100 * pick.top1:.1f} %", note, verdict))
    elif pick.map is not None:
        out.append(Card("mAP", f"{100 * pick.map:.1f} %", "" if lost is None else f"{-lost:+.1f} points"))
    elif pick.agreement is not None:
        out.append(Card("agreement with the source", f"{100 * pick.agreement:.1f} %", "no labels, so no accuracy"))
    if times := pick.latency_ms:
        saved = _saved(source.p50_ms if source else None, times.p50, "faster")
        out.append(Card("latency, p50", f"{times.p50:.2f} ms", *saved))
    if pick.size_mib is not None:
        saved = _saved(source.size_mib if source else None, pick.size_mib, "smaller")
        out.append(Card("size", f"{pick.size_mib:.1f} MiB", *saved))
    if pick.peak_rss_mib is not None:
        saved = _saved(source.peak_rss_mib if source else None, pick.peak_rss_mib, "less")
        out.append(Card("peak memory", f"{pick.peak_rss_mib:.0f} MiB", *saved))
    return out


def _what(pick: Row, facts: Facts) -> str:
    """What the artifact is, and which file of the run it is."""
    built = facts.steps.get(f"build/{pick.artifact}")
    sizes = {path: facts.artifacts[path].bytes for path in (built.outputs if built else ()) if path in facts.artifacts}
    largest = max(sizes, key=sizes.__getitem__, default="")
    known = f"{pick.precision.upper()} for {pick.target}" + (f" ({pick.platform})" if pick.platform else "")
    return f"{known}, measured on {pick.device}." + (f" File: {facts.root.name}/{largest}" if largest else "")


def _saved(source: float | None, own: float, word: str) -> tuple[str, str]:
    """How it compares with the source model's figure."""
    if not source or not own:
        return "", ""
    opposite = {"faster": "slower", "smaller": "larger", "less": "more"}[word]
    ratio = source / own
    if 0.995 < ratio < 1.005:
        return "the same as the source", ""
    text = f"{ratio:.2f} times {word}" if ratio >= 1 else f"{1 / ratio:.2f} times {opposite}"
    return f"{text} than the source", _verdict(ratio < 0.97, ratio > 1.03)


def _verdict(loss: bool, gain: bool) -> str:
    return "loss" if loss else "gain" if gain else ""


def _notes(facts: Facts, ok: Sequence[Row]) -> list[str]:
    out = []
    if facts.reported("import", "random_weights"):
        out.append("The model has random weights: speed and size mean something, accuracy does not.")
    if any(result.data.calibration for result in facts.results.values()):
        out.append("Measured on the images that the model was calibrated on: the accuracy flatters.")
    if any(row.device == "simulator" for row in ok):
        out.append("Rows on a simulator show accuracy; they have no latency.")
    out += [f"{row.artifact}: outside its tolerance when it was built." for row in ok if row.accepted is False]
    return out + [line for result in facts.results.values() for line in show.failures(result)]


def _for_script(row: Row, facts: Facts) -> dict[str, str | float | None]:
    lost = "unknown" if row.drop_points is None else f"{row.drop_points:.1f} points"
    p50 = "" if row.p50_ms is None else f"; p50 {row.p50_ms:.2f} ms"
    words = f"Lost against the source model: {lost}{p50}."
    costs = {"p50": row.p50_ms, "drop": row.drop_points, "size": row.size_mib}
    return {"name": row.artifact, **costs, "why": words, "what": _what(row, facts)}


def _embed(value: Any) -> str:
    # "</script>" inside a string would end the element.
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
