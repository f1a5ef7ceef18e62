"""`vitedge analyze`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vitedge import api
from vitedge.cli.console import ConsoleReporter, print_json, print_table
from vitedge.cli.flags import RUN, ConfigFlag, JsonFlag, RunFlag, with_flags


@with_flags("analyze")
def command(*, run: RunFlag = RUN, config: ConfigFlag = None, json: JsonFlag = False, given: Mapping[str, Any]) -> None:
    """Shows the error of each quantised tensor, worst first, and what to do about it.

    SQNR and cosine: the activation itself, with everything before it in INT8. Alone: SQNR and KL divergence of the
    logits with that tensor alone in INT8. Simulated in PyTorch on the calibration images.
    """
    found = api.open(run).analyze(config=config, reporter=ConsoleReporter(), **given)
    if json:
        print_json([asdict(row) for row in found.errors])
    else:
        print_table(found.table)
