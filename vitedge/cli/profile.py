"""`vitedge profile`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from vitedge import api
from vitedge.cli.console import ConsoleReporter, out, print_json, print_table
from vitedge.cli.flags import RUN, ConfigFlag, JsonFlag, RunFlag, with_flags


@with_flags("profile")
def command(
    *,
    model: Annotated[
        str | None, typer.Argument(help="Name, checkpoint or folder; the run's source model where left out.")
    ] = None,
    run: RunFlag = RUN,
    config: ConfigFlag = None,
    json: JsonFlag = False,
    given: Mapping[str, Any],
) -> None:
    """Fits what each kind of work takes on this machine, so that a plan's latency is known before it is built.

    Plans of the model's widths and tokens are built with random weights and timed: leave the machine alone meanwhile.
    `vitedge search` and `--prune-unit time` use the result; a target that can't be timed here gets an estimate.
    """
    found = api.profile(model, run=run, config=config, reporter=ConsoleReporter(), **given)
    if json:
        print_json([one.to_dict() for one in found])
        return
    for one in found:
        print_table(one.model.table())
        known = "" if one.measured_ms is None else f", measured {one.measured_ms:.2f} ms"
        kind = "estimated" if one.model.estimated else "by this model"
        out.print(f"The dense model: {one.dense_ms:.2f} ms {kind}{known}. Kept in {one.file}", markup=False)
