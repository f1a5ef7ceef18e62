"""The report of a run as files."""

from __future__ import annotations

from pathlib import Path

from vitedge.bundle import Bundle
from vitedge.files import clean, write_output, write_text
from vitedge.report import markdown, page
from vitedge.report.attention import compare_attention
from vitedge.report.collect import collect
from vitedge.reporter import Reporter


def write_report(bundle: Bundle, html: Path, *, max_drop: float, max_ms: float | None, reporter: Reporter) -> Path:
    """Writes `html` and, beside it, the same as Markdown. Raises VitedgeError where the run was never measured."""
    clean(html.parent)
    facts = collect(bundle)
    attention = compare_attention(bundle, facts, reporter)
    # In the run folder nothing is written through a link; a path that the user named is.
    write = write_text if html.parent == bundle.root else write_output
    write(html, page.render(facts, most_drop=max_drop, most_ms=max_ms, attention=attention))
    write(html.with_suffix(".md"), markdown.render(facts, most_drop=max_drop, most_ms=max_ms))
    return html
