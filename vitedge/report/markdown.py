"""report.md: the summary for a pull request."""

from __future__ import annotations

from vitedge import __version__
from vitedge.bench import show
from vitedge.report import pareto
from vitedge.report.collect import Facts, commands
from vitedge.report.html_table import cell_text


def render(facts: Facts, *, most_drop: float = 1.0, most_ms: float | None = None) -> str:
    """GitHub's Markdown."""
    rows = [row for result in facts.results.values() for row in result["rows"] if row["status"] == "ok"]
    pick, why = pareto.recommend(rows, most_drop, most_ms)
    parts = ["# vitedge report", f"**Recommended: {pick['artifact'] if pick else 'none'}.** {why}"]
    for result in facts.results.values():
        ok = result | {"rows": [row for row in result["rows"] if row["status"] == "ok"]}
        parts.append(f"## {show.host_line(result)}\n\n{show.data_line(result)}")
        for columns, cells in (show.accuracy_table(ok), show.latency_table(ok)):
            parts.append(table(*show.drop_empty(columns, cells)))
        parts += [f"- {r['artifact']}: {r['status']}: {r['reason']}" for r in result["rows"] if r["status"] != "ok"]
    if facts.flips:
        lines = [[one.artifact, one.changed, one.lost, one.won, one.of] for one in facts.flips]
        parts.append("## Changed against FP32\n\n" + table(["artifact", "changed", "lost", "won", "of"], lines))
    parts.append(f"## Commands\n\n```sh\n{commands(facts)}\n```")
    parts.append(f"Made by vitedge {__version__}. A dash was not measured; intervals are for 95 %.")
    return "\n\n".join(parts) + "\n"


def table(columns: list[str], rows: list[list]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [columns, ["---"] * len(columns), *([cell_text(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
