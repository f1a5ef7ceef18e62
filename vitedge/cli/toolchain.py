"""`vitedge toolchain`: vendors' compilers in environments of their own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vitedge import targets
from vitedge.cli.console import ConsoleReporter, out, print_json, print_table
from vitedge.errors import VitedgeError
from vitedge.tables import Table

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Install, list and remove vendors' compilers.")

Name = Annotated[str, typer.Argument(help="The target whose compiler it is, such as rknn.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


def _known() -> dict[str, Any]:
    """Target -> its `toolchain` module, for the targets whose compiler can't live beside ours."""
    found = {name: getattr(targets.get(name), "toolchain", None) for name in targets.names()}
    return {name: module for name, module in found.items() if module is not None}


def _get(name: str) -> Any:
    known = _known()
    if name not in known:
        raise VitedgeError(
            f"There is no toolchain '{name}'.",
            "Only compilers that pin other versions than ours get an environment of their own.",
            f"Choose one of: {', '.join(known)}.",
        )
    return known[name]


@app.command()
def install(
    name: Name,
    version: Annotated[str | None, typer.Option(help="Its version. [default: the one vitedge is tested with]")] = None,
    into: Annotated[Path | None, typer.Option(help="Folder. [default: in the user's data folder]")] = None,
    python: Annotated[str | None, typer.Option(help="The Python to make the environment with.")] = None,
    json: Json = False,
) -> None:
    """Makes the vendor's environment, builds a small model in it, and remembers it."""
    module, reporter = _get(name), ConsoleReporter()
    made = module.install(version or module.DEFAULT_VERSION, into, python, reporter.info)
    if json:
        print_json(asdict(made))
    else:
        out.print(f"{name} {made.version} is installed in {made.folder}")


@app.command("list")
def list_(json: Json = False) -> None:
    """Shows the environments that vitedge made."""
    entries = [{"target": name, **asdict(t)} for name, module in _known().items() for t in module.installed()]
    if json:
        print_json(entries)
        return
    rows = [[e["target"], e["version"], e["folder"], Path(e["python"]).exists()] for e in entries]
    hint = "" if rows else f"None. Install one with `vitedge toolchain install {next(iter(_known()))}`."
    print_table(Table("Toolchains", ["target", "version", "folder", "there"], rows, hint))


@app.command()
def remove(
    name: Name, folder: Annotated[str | None, typer.Option(help="The one in this folder alone.")] = None
) -> None:
    """Deletes the environments that vitedge made for that target."""
    for gone in _get(name).remove(folder):
        out.print(f"Removed {name} {gone.version} from {gone.folder}")
