"""`vitedge report`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitedge import api
from vitedge.cli.console import ConsoleReporter, out, print_json
from vitedge.cli.flags import RUN, ConfigFlag, JsonFlag, RunFlag, with_flags


@with_flags("report")
def command(*, run: RunFlag = RUN, config: ConfigFlag = None, json: JsonFlag = False, given: Mapping[str, Any]) -> None:
    """Writes report.html and report.md."""
    html = api.open(run).report(config=config, reporter=ConsoleReporter(), **given)
    files = [str(html), str(html.with_suffix(".md"))]
    if json:
        print_json({"files": files})
    else:
        for file in files:
            out.print(file, markup=False)
