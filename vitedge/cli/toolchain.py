"""`vitedge toolchain`: vendors' compilers in environments of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge import targets
from vitedge.cli import Command
from vitedge.cli.console import ConsoleReporter, out, print_json, print_table
from vitedge.cli.flags import JsonFlag
from vitedge.errors import VitedgeError
from vitedge.tables import Cell, Table
from vitedge.targets.base import Environment, Toolchains

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Install, list and remove vendors' compilers.")

Name = Annotated[str, typer.Argument(help="The target whose compiler it is, such as rknn.", metavar="TARGET")]


def _known() -> dict[str, Toolchains]:
    """Target -> its environments, for the targets whose compiler can't live beside ours."""
    found = {name: targets.get(name).toolchains() for name in targets.names()}
    return {name: one for name, one in found.items() if one is not None}


def _get(name: str) -> Toolchains:
    known = _known()
    if name not in known:
        raise VitedgeError(
            f"There is no toolchain '{name}'.",
            "Only compilers that pin other versions than ours get an environment of their own.",
            f"Choose one of: {', '.join(known)}.",
        )
    return known[name]


def _facts(target: str, one: Environment) -> dict[str, str]:
    return {"target": target, "python": one.python, "version": one.version, "folder": one.folder, "source": one.source}


@app.command(cls=Command)
def install(
    name: Name,
    version: Annotated[str | None, typer.Option(help="Its version. (default: the one vitedge is tested with)")] = None,
    into: Annotated[Path | None, typer.Option(help="Folder. (default: in the user's data folder)")] = None,
    python: Annotated[str | None, typer.Option(help="The Python to make the environment with.")] = None,
    json: JsonFlag = False,
) -> None:
    """Makes the vendor's environment, builds a small model in it, and remembers it."""
    toolchains, reporter = _get(name), ConsoleReporter()
    with reporter.busy(f"installing the compiler of {name}"):
        made = toolchains.install(version or toolchains.DEFAULT_VERSION, into, python, reporter.info)
    if json:
        print_json(_facts(name, made))
    else:
        out.print(f"{name} {made.version} is installed in {made.folder}", markup=False)


@app.command("list", cls=Command)
def list_(json: JsonFlag = False) -> None:
    """Shows the environments that vitedge made."""
    entries = [_facts(name, one) for name, found in _known().items() for one in found.installed()]
    if json:
        print_json(entries)
        return
    rows: list[list[Cell]] = [[e["target"], e["version"], e["folder"], Path(e["python"]).exists()] for e in entries]
    hint = "" if rows else f"None. Install one with `vitedge toolchain install {next(iter(_known()))}`."
    print_table(Table("Toolchains", ["target", "version", "folder", "there"], rows, hint))


@app.command(cls=Command)
def remove(
    name: Name,
    folder: Annotated[str | None, typer.Option(help="The one in this folder alone.")] = None,
    json: JsonFlag = False,
) -> None:
    """Deletes the environments that vitedge made for that target."""
    gone = _get(name).remove(folder)
    if json:
        print_json([_facts(name, one) for one in gone])
        return
    for one in gone:
        out.print(f"Removed {name} {one.version} from {one.folder}", markup=False)
