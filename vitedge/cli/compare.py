"""`vitedge compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from vitedge.bench.compare import compare
from vitedge.bench.from_bundle import load_result
from vitedge.cli.console import err, out, print_json, print_table
from vitedge.errors import VitedgeError


def command(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Files of `vitedge bench --json`, or run folders: the newest of each.", metavar="FILE|RUN..."
        ),
    ],
    fail: Annotated[bool, typer.Option("--fail", help="Exit status 1 where something became worse.")] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Compares bench results."""
    if len(files) < 2:
        raise VitedgeError("There is nothing to compare.", "One file was given.", "Name two or more.")
    # A name that tells them apart: the file's own, or its folder's too where they are alike.
    alike = len({path.name for path in files}) < len(files)
    found = compare([(str(path) if alike else path.stem, load_result(path)) for path in files])
    if json:
        print_json(found.to_dict())
    else:
        print_table(found.table.without_empty())
        for line in found.worse:
            err.print(f"[bold red]worse:[/] {escape(line)}")
        out.print(found.verdict)
    if found.worse and fail:
        raise typer.Exit(1)
