"""`vitedge compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.bench.compare import compare
from vitedge.bench.result import load
from vitedge.cli.console import err, out, print_json, print_table
from vitedge.errors import VitedgeError
from vitedge.tables import Table


def command(
    files: Annotated[list[Path], typer.Argument(help="Files of `vitedge bench --json`.", metavar="FILE...")],
    fail: Annotated[bool, typer.Option("--fail", help="Exit status 1 where something became worse.")] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Compares bench results."""
    if len(files) < 2:
        raise VitedgeError("There is nothing to compare.", "One file was given.", "Name two or more.")
    # A name that tells the files apart: the file's own, or its folder's too where they are alike.
    alike = len({path.name for path in files}) < len(files)
    named = [(str(path) if alike else path.stem, load(path)) for path in files]
    columns, rows, worse = compare(named)
    if json:
        keys = ["artifact", "file", "machine", "top1", "top1_change", "p50_ms", "p50_change", "peak_mib", "size_mib"]
        print_json({"rows": [dict(zip(keys, row, strict=True)) for row in rows], "worse": worse})
    else:
        note = "▼ worse, ▲ better than in the first file, beyond the 95 % interval (and 3 % of latency)."
        print_table(Table("Compared", columns, rows, note).without_empty())
        for line in worse:
            err.print(f"[bold red]worse:[/] {line}")
        if not worse:
            out.print("Nothing became worse beyond the noise.")
    if worse and fail:
        raise typer.Exit(1)
