"""`vitedge report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.bundle import DEFAULT_RUN, Bundle
from vitedge.cli.console import ConsoleReporter, out
from vitedge.files import write_text


def command(
    run: Annotated[Path, typer.Option("--run", help="Run folder.")] = Path(DEFAULT_RUN),
    output: Annotated[Path | None, typer.Option("-o", "--output", help="HTML file. [default: in the run]")] = None,
    max_drop: Annotated[float, typer.Option("--max-drop", help="Points of top-1 that may be lost.")] = 1.0,
    max_ms: Annotated[float | None, typer.Option("--max-ms", help="Limit of p50 for the recommendation.")] = None,
) -> None:
    """Writes report.html and report.md."""
    from vitedge.report import markdown, page
    from vitedge.report.attention import compare_attention
    from vitedge.report.collect import collect

    bundle = Bundle.open(run)
    facts = collect(bundle)
    attention = compare_attention(bundle, facts, ConsoleReporter())
    html = output or run / "report.html"
    write_text(html, page.render(facts, most_drop=max_drop, most_ms=max_ms, attention=attention))
    write_text(html.with_suffix(".md"), markdown.render(facts, most_drop=max_drop, most_ms=max_ms))
    out.print(str(html), markup=False)
    out.print(str(html.with_suffix(".md")), markup=False)
