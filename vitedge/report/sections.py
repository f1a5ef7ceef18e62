"""The parts of the page, as plain values for its template."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vitedge.bench import show
from vitedge.report import pareto
from vitedge.report.collect import Facts
from vitedge.report.html_table import sort_key
from vitedge.report.svg import Point, scatter
from vitedge.report.svg import strips as latency_strips
from vitedge.tables import Cell, Table, cell_text, is_number

_HOW_TO_READ = "Faint marks are single inferences; the box goes from p50 to p90, then come p95 and p99 (dashed)."


def host(result: dict[str, Any]) -> dict[str, Any]:
    """The results and the environment of one machine."""
    ok = _ok(result)
    sub = result | {"rows": ok}
    on_front = _on_front(ok)
    tables = []
    for table in (show.accuracy_table(sub), show.latency_table(sub)):
        columns, cells = table.columns, table.rows
        rows = [
            {
                "front": front,
                "cells": [{"text": cell_text(c), "sort": sort_key(c), "number": _starts_number(c)} for c in line],
            }
            for line, front in zip(cells, on_front, strict=True)
        ]
        tables.append({"columns": columns, "rows": rows})
    s = result.get("settings", {})
    threads = sorted({str(row["threads"]) for row in ok if row["threads"]})
    how = f"Latency: {', '.join(s.get('scenarios', []))}; at least {s.get('seconds')} s and 10 runs each, in turns."
    if threads:
        how += f" Threads: {', '.join(threads)}."
    failed = [f"{r['artifact']}: {r['status']}: {r['reason']}" for r in result["rows"] if r["status"] != "ok"]
    return {
        "line": show.host_line(result),
        "data": show.data_line(result),
        "how": how,
        "tables": tables,
        "failed": failed,
        "facts": [
            (key, _plain(value)) for key, value in {**result["host"], **s}.items() if value not in (None, [], "")
        ],
    }


def _starts_number(cell: Any) -> bool:
    return cell is None or is_number(cell) or (isinstance(cell, str) and cell[:1] in "+-0123456789")


def _on_front(rows: list[dict[str, Any]]) -> list[bool]:
    timed = [row for row in rows if pareto.p50_ms(row) is not None and pareto.quality(row) is not None]
    flags = pareto.front([pareto.p50_ms(r) or 0.0 for r in timed], [pareto.quality(r) or 0.0 for r in timed])
    best = {id(row) for row, flag in zip(timed, flags, strict=True) if flag}
    return [id(row) in best for row in rows]


def plots(facts: Facts, colors: dict[str, int]) -> list[dict[str, str]]:
    """Accuracy against latency and against size, over all machines."""
    out = []
    several = len(facts.results) > 1
    for cost, name, caption in (
        (pareto.p50_ms, "p50 latency in ms", "latency"),
        (lambda row: row.get("size_mib"), "size in MiB", "size"),
    ):
        rows = [
            (row, host if several else "")
            for host, result in facts.results.items()
            for row in _ok(result)
            if cost(row) is not None and pareto.quality(row) is not None
        ]
        flags = pareto.front([cost(r) or 0.0 for r, _ in rows], [pareto.quality(r) or 0.0 for r, _ in rows])
        points = []
        for (row, host), flag in zip(rows, flags, strict=True):
            low, high = row["top1_ci95"] or (None, None)
            good = pareto.quality(row) or 0.0
            label = row["artifact"] + (f" @ {host}" if host else "")
            detail = f"{label}\n{100 * good:.1f} %, {name.split(' in ')[0]} {cost(row):.2f} {name.split(' in ')[1]}"
            color, x = colors[row["target"]], cost(row) or 0.0
            point = Point(label, x, 100 * good, color=color, front=flag, detail=detail)
            points.append(point if low is None or high is None else replace(point, low=100 * low, high=100 * high))
        if points:
            kind = "top-1 in %" if rows[0][0]["top1"] is not None else "agreement with FP32 in %"
            svg = scatter(points, name, kind, f"{kind} against {name}")
            text = f"{kind.split(' in ')[0]} against {caption}; bars are 95 % intervals, the line is the Pareto front."
            out.append({"svg": svg, "caption": text[0].upper() + text[1:]})
    return out


def strips(facts: Facts, colors: dict[str, int]) -> list[dict[str, str]]:
    """Each machine's latency distributions."""
    out = []
    for result in facts.results.values():
        rows = [(row["artifact"], colors[row["target"]], row["latency_ms"]) for row in _ok(result) if row["latency_ms"]]
        if rows:
            caption = f"{show.host_line(result)}. {_HOW_TO_READ}"
            out.append({"svg": latency_strips(rows, "latency distributions"), "caption": caption})
    return out


def stages(facts: Facts) -> list[Table]:
    """The way from an image file, where it was timed."""
    rows: list[tuple[Cell, ...]] = []
    for result in facts.results.values():
        for row in _ok(result):
            if found := row.get("stages_ms"):
                names = ("preprocess", "inference", "postprocess", "end_to_end")
                rows.append((row["artifact"], *(round(found[name]["p50"], 3) for name in names)))
    columns = ("artifact", "decode and resize", "inference", "softmax and top 5", "end to end")
    note = "From an image file to names of classes, one image at a time, as it is: p50 in ms."
    return [Table("The way from a file", columns, tuple(rows), note)] if rows else []


def step(name: str, step: dict[str, Any], facts: Facts) -> dict[str, Any]:
    """One step of the lineage."""
    outputs = step.get("outputs", [])
    shown = [("options", _plain(step.get("options"))), ("tools", _plain(step.get("tools")))]
    shown += [("facts", _plain(step.get("facts"))), ("made from", ", ".join(step.get("inputs", {})) or "outside files")]
    for path in outputs:
        entry = facts.artifacts.get(path, {})
        shown.append((path, f"{entry.get('bytes', 0):,} bytes, sha256 {entry.get('sha256', '?')}"))
    summary = f"{len(outputs)} files, {step.get('seconds', 0)} s"
    return {"name": name, "summary": summary, "facts": [(k, v) for k, v in shown if v not in ("", "{}", "None")]}


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_plain(v)}" for key, v in value.items() if v is not None)
    if isinstance(value, (list, tuple)):
        return "; ".join(_plain(one) for one in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _ok(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["status"] == "ok"]
