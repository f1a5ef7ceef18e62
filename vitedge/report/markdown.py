"""report.md: the summary for a pull request."""

from __future__ import annotations

from vitedge import __version__
from vitedge.bench import show
from vitedge.report import pareto
from vitedge.report.collect import Facts, commands
from vitedge.tables import Cell, Table
from vitedge.tables import markdown as table


def render(facts: Facts, *, most_drop: float = 1.0, most_ms: float | None = None) -> str:
    """GitHub's Markdown."""
    rows = [row for result in facts.results.values() for row in result["rows"] if row["status"] == "ok"]
    pick, why = pareto.recommend(rows, most_drop, most_ms)
    parts = ["# vitedge report", f"**Recommended: {pick['artifact'] if pick else 'none'}.** {why}"]
    for result in facts.results.values():
        ok = result | {"rows": [row for row in result["rows"] if row["status"] == "ok"]}
        parts.append(f"## {show.host_line(result)}\n\n{show.data_line(result)}")
        parts += [table(show.accuracy_table(ok)), table(show.latency_table(ok))]
        parts += [f"- {r['artifact']}: {r['status']}: {r['reason']}" for r in result["rows"] if r["status"] != "ok"]
    if facts.flips:
        lines: list[list[Cell]] = [[one.artifact, one.changed, one.lost, one.won, one.of] for one in facts.flips]
        columns = ["artifact", "changed", "lost", "won", "of"]
        parts.append("## Changed against FP32\n\n" + table(Table("", columns, lines)))
    parts.append(f"## Commands\n\n```sh\n{commands(facts)}\n```")
    parts.append(f"Made by vitedge {__version__}. A dash was not measured; intervals are for 95 %.")
    return "\n\n".join(parts) + "\n"
