"""report.md: the summary for a pull request."""

from __future__ import annotations

from html import escape

from vitedge import __version__
from vitedge.bench import show
from vitedge.report import pareto
from vitedge.report.collect import Facts, commands
from vitedge.tables import Cell, Table, escape_markdown, markdown


def render(facts: Facts, *, most_drop: float = 1.0, most_ms: float | None = None) -> str:
    """GitHub's Markdown; names of files, classes and artifacts are shown as they are, never as markup."""
    pick, why = pareto.recommend(facts.measured, most_drop, most_ms)
    name = escape_markdown(pick.artifact) if pick else "none"
    parts = ["# vitedge report", f"**Recommended: {name}.** {escape_markdown(why)}"]
    for result in facts.results.values():
        parts.append(f"## {escape_markdown(show.host_line(result.host))}\n\n{escape_markdown(show.data_line(result))}")
        parts += [f"{markdown(table)}\n\n{escape_markdown(table.note)}".strip() for table in show.tables(result)]
        parts += ["\n".join(f"- {escape_markdown(line)}" for line in show.failures(result))]
    if facts.flips:
        lines: list[list[Cell]] = [[one.artifact, one.changed, one.lost, one.won, one.of] for one in facts.flips]
        columns = ["artifact", "changed", "lost", "won", "of"]
        parts.append("## Changed against the source model\n\n" + markdown(Table("", columns, lines)))
    if chosen := [one for one in facts.classes if pick and one.artifact == pick.artifact]:
        table = chosen[0].table
        parts.append(f"## {escape_markdown(table.title)}\n\n{markdown(table)}\n\n{table.note}".strip())
    if facts.training:
        parts.append(f"## How the model was trained\n\n{escape_markdown(facts.training.line)}")
        parts += [f"### {escape_markdown(t.title)}\n\n{markdown(t)}\n\n{t.note}".strip() for t in facts.training.tables]
    # In a fence a name could still be taken for markup by what is no GitHub.
    parts.append(f"## Commands\n\n<pre>\n{escape(commands(facts))}\n</pre>")
    parts += [f"- {escape_markdown(line)}" for line in facts.problems]
    parts.append(f"Made by vitedge {__version__}. A dash was not measured; intervals are for 95 %.")
    return "\n\n".join(part for part in parts if part) + "\n"
