"""report.html: one file that needs no network, from the facts of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from vitedge import __version__
from vitedge.bench import show
from vitedge.errors import missing_package
from vitedge.report import pareto, sections
from vitedge.report.collect import Facts, commands
from vitedge.report.html_table import table_html

_COLORS = 6


def render(facts: Facts, *, most_drop: float = 1.0, most_ms: float | None = None, attention: Any = None) -> str:
    """The page's HTML. `attention` is what `vitedge.report.attention` made, or None.

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
    environment.globals["render"] = lambda table: Markup(table_html(table))
    rows = [row for result in facts.results.values() for row in result["rows"]]
    ok = [row for row in rows if row["status"] == "ok"]
    pick, why = pareto.recommend(ok, most_drop, most_ms)
    colors = _colors(ok)
    plots = [plot | {"svg": Markup(plot["svg"])} for plot in sections.plots(facts, colors)]
    strip_plots = [strip | {"svg": Markup(strip["svg"])} for strip in sections.strips(facts, colors)]
    hosts = [sections.host(result) for result in facts.results.values()]
    first = next(iter(facts.results.values()))
    context: dict[str, Any] = {
        "title": f"vitedge: {_origin(facts)}",
        "subtitle": f"{len(ok)} of {len(rows)} artifacts measured. {show.data_line(first)}",
        "css": Markup(css),
        "js": Markup(js),
        "pick": pick,
        "why": why,
        "budget_drop": f"{most_drop:g}",
        "cards": _cards(pick, ok),
        "notes": _notes(facts, ok),
        "hosts": hosts,
        "plots": plots,
        "legend": list(colors.items()),
        "strips": strip_plots,
        "stages": sections.stages(facts),
        "tables": facts.tables,
        "problems": facts.problems,
        "flips": facts.flips,
        "attention": attention,
        "lineage": [sections.step(name, step, facts) for name, step in facts.steps.items()],
        "commands": commands(facts),
        "footer": f"Made by vitedge {__version__}. Units: ms = milliseconds, MiB = 2^20 bytes, mJ = millijoules.",
        "rows_json": Markup(_embed([_for_script(row) for row in ok])),
    }
    names = {"summary": "Summary", "results": "Results", "plots": "Plots", "latency": "Latency"}
    names |= {"analysis": "Layers", "flips": "Changes", "attention": "Attention", "lineage": "Lineage"}
    names |= {"commands": "Commands", "environment": "Environment"}
    shown: dict[str, Any] = {"plots": plots, "latency": strip_plots, "analysis": facts.tables or facts.problems}
    shown |= {"flips": facts.flips, "attention": attention}
    context["sections"] = [(key, name) for key, name in names.items() if shown.get(key, True)]
    return environment.from_string(template).render(**context)


def _colors(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Target -> number of its colour."""
    return {name: at % _COLORS for at, name in enumerate(dict.fromkeys(row["target"] for row in rows))}


def _origin(facts: Facts) -> str:
    for name in ("import", "source"):
        if origin := facts.steps.get(name, {}).get("facts", {}).get("origin"):
            return str(origin).split("/")[-2 if str(origin).count("/") else 0].split(" ")[0]
    return facts.root.resolve().name


def _cards(pick: dict[str, Any] | None, ok: list[dict[str, Any]]) -> list[dict[str, str]]:
    if pick is None:
        return []
    out = []
    if (top1 := pick.get("top1")) is not None:
        low, high = pick["top1_ci95"]
        out.append(("top-1", f"{100 * top1:.1f} %", f"95 %: {100 * low:.1f} to {100 * high:.1f}"))
    elif pick.get("agreement") is not None:
        out.append(("agreement with FP32", f"{100 * pick['agreement']:.1f} %", "no labels, so no accuracy"))
    if pick.get("delta_top1") is not None:
        low, high = pick["delta_ci95"]
        out.append(
            ("against FP32", f"{100 * pick['delta_top1']:+.1f}", f"points, 95 %: {100 * low:+.1f} to {100 * high:+.1f}")
        )
    if times := pick.get("latency_ms"):
        ratio = pick.get("latency_ratio")
        note = f"p99 {times['p99']:.1f} ms" + (f"; {ratio['ratio']:.2f} x {ratio['to']}" if ratio else "")
        out.append(("p50 latency", f"{times['p50']:.1f} ms", note))
    if pick.get("size_mib") is not None:
        largest = max(row["size_mib"] for row in ok if row["size_mib"] is not None)
        out.append(("size", f"{pick['size_mib']:.1f} MiB", f"the largest is {largest:.1f} MiB"))
    return [{"name": name, "value": value, "note": note} for name, value, note in out]


def _notes(facts: Facts, ok: list[dict[str, Any]]) -> list[str]:
    out = []
    if facts.steps.get("import", {}).get("facts", {}).get("random_weights"):
        out.append("The model has random weights: speed and size mean something, accuracy does not.")
    if any(result["data"].get("calibration") for result in facts.results.values()):
        out.append("Measured on the images that the model was calibrated on: the accuracy flatters.")
    if any(row["device"] == "simulator" for row in ok):
        out.append("Rows on a simulator show accuracy; they have no latency.")
    out += [
        f"{row['artifact']}: outside its tolerance when it was built." for row in ok if row.get("accepted") is False
    ]
    return out


def _for_script(row: dict[str, Any]) -> dict[str, Any]:
    drop = pareto.drop(row)
    words = "Lost against FP32: " + ("unknown" if drop is None else f"{drop:.1f} points")
    p50 = pareto.p50_ms(row)
    words += "" if p50 is None else f"; p50 {p50:.1f} ms"
    return {"name": row["artifact"], "p50": p50, "drop": drop, "size": row["size_mib"], "why": words + "."}


def _embed(value: Any) -> str:
    # "</script>" inside a string would end the element.
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
