"""`vitedge doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vitedge import api
from vitedge.bench.golden.judge import Judgement, advice, golden_table
from vitedge.cli.console import ConsoleReporter, out, print_json, print_table
from vitedge.cli.flags import JsonFlag
from vitedge.doctor import examine


def command(
    pack: Annotated[
        Path | None, typer.Option("--pack", help="A pack of `vitedge pack`: do its artifacts compute right here?")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Shows what each target finds here, and whether a pack's artifacts compute right."""
    found = examine()
    golden: dict[str, Judgement] = {}
    if pack is not None:
        golden = api.check_pack(pack, reporter=ConsoleReporter())
    if json:
        print_json(found.to_dict() | ({"golden": {name: asdict(one) for name, one in golden.items()}} if pack else {}))
    else:
        out.print(f"vitedge {found.vitedge}, Python {found.python}, {found.machine}")
        for table in [*found.tables, *([golden_table(golden)] if golden else [])]:
            print_table(table)
        for line in advice(golden):
            out.print(line, markup=False)
    if any(one.verdict == "wrong" for one in golden.values()):
        raise typer.Exit(1)
