"""`vitedge inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from vitedge import api
from vitedge.cli.console import print_json, print_table
from vitedge.cli.flags import RUN, ConfigFlag, JsonFlag, RunFlag, with_flags


@with_flags("inspect")
def command(
    *,
    model: Annotated[
        str | None, typer.Argument(help="Name, checkpoint or folder; the run's final model where left out.")
    ] = None,
    run: RunFlag = RUN,
    config: ConfigFlag = None,
    json: JsonFlag = False,
    given: Mapping[str, Any],
) -> None:
    """Shows widths, parameters and MACs per layer, and the operators of the run's graphs."""
    found = api.open(run).inspect() if model is None else api.inspect(model, config=config, **given)
    if json:
        print_json(found.to_dict())
        return
    for table in found.tables.values():
        print_table(table)
