"""`vitedge serve`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitedge import api
from vitedge.cli.console import ConsoleReporter
from vitedge.cli.flags import RUN, ConfigFlag, JsonFlag, RunFlag, with_flags


@with_flags("serve")
def command(*, run: RunFlag = RUN, config: ConfigFlag = None, json: JsonFlag = False, given: Mapping[str, Any]) -> None:
    """Serves a page and a REST API over the run's artifacts; --json: errors as JSON."""
    api.open(run).serve(config=config, reporter=ConsoleReporter(), **given)
