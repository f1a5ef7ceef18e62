"""`vitedge doctor`."""

from __future__ import annotations

from vitedge.cli.console import out, print_json, print_table
from vitedge.cli.flags import JsonFlag
from vitedge.doctor import examine


def command(json: JsonFlag = False) -> None:
    """Shows what each target finds here."""
    found = examine()
    if json:
        print_json(found.to_dict())
        return
    out.print(f"vitedge {found.vitedge}, Python {found.python}, {found.machine}")
    for table in found.tables:
        print_table(table)
