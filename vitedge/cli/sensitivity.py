"""`vitedge sensitivity`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitedge import api
from vitedge.cli.console import ConsoleReporter, print_json, print_table
from vitedge.cli.flags import RUN, ConfigFlag, JsonFlag, RunFlag, with_flags


@with_flags("sensitivity")
def command(*, run: RunFlag = RUN, config: ConfigFlag = None, json: JsonFlag = False, given: Mapping[str, Any]) -> None:
    """Shows what pruning would cost, share by share and layer by layer.

    Agreement with the dense model on calibration images that nothing was solved on, in closed form only: what
    `vitedge compress --prune` reaches is better, since it also fits each block. The run's report shows it too.
    """
    found = api.open(run).sensitivity(config=config, reporter=ConsoleReporter(), **given)
    if json:
        print_json(found.to_dict())
        return
    for table in found.tables:
        print_table(table)
