"""`vitedge serve`."""

from __future__ import annotations

from typing import Any

from vitedge import api
from vitedge.cli.console import ConsoleReporter
from vitedge.cli.flags import RUN, ConfigFlag, RunFlag, with_flags


@with_flags("serve")
def command(*, run: RunFlag = RUN, config: ConfigFlag = None, given: dict[str, Any]) -> None:
    """Serves a page and a REST API over the run's artifacts.

    Examples:

        vitedge serve

        vitedge serve --host 0.0.0.0 --token "$(openssl rand -hex 16)"
    """
    api.open(run).serve(config=config, reporter=ConsoleReporter(), **given)
