"""`vitedge search`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vitedge import api
from vitedge.cli.console import ConsoleReporter, out, print_json, print_table
from vitedge.cli.flags import ConfigFlag, JsonFlag, with_flags


@with_flags("search")
def command(
    *,
    folder: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the search; one that is there is gone on with.")
    ] = Path("vitedge-search"),
    config: ConfigFlag = None,
    json: JsonFlag = False,
    given: Mapping[str, Any],
) -> int:
    """Finds the models that lose least for what they cost: tokens, widths, depth, precision and preset.

    One pass over the model predicts thousands of candidates; only the best are made, built and measured, and images
    that nothing was fitted to decide. Ctrl-C ends it with the front so far; the same command goes on, and started on
    several machines with one --storage it shares the work.
    """
    result = api.search(out=folder, config=config, reporter=ConsoleReporter(), **given)
    if json:
        print_json(result.to_dict())
        return 0
    print_table(result.table())
    for budget, point in result.best.items():
        if point is None:
            out.print(f"{budget}: nothing measured meets it within --max-drop.", markup=False)
        else:
            run = result.root / point.measured.run
            out.print(f"{budget}: {point.candidate}; next: vitedge report --run {run}", markup=False)
    for name, why in result.failed.items():
        out.print(f"not made: {name}: {why}", markup=False)
    out.print(f"Recipes (vitedge compress --config) stand in {result.root / 'recipes'}.", markup=False)
    return 0
