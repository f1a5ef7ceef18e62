"""The command line. One file a command; a command's module is imported only when it is called."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from vitedge import __version__
from vitedge.cli import failures

# Name, which is also the module's, -> help. The order is that of `vitedge --help`.
COMMANDS: dict[str, str] = {
    "compress": "Import a trained ViT, compress it, and write its ONNX graphs.",
    "build": "Build what a target runs, from the run's ONNX graphs.",
    "bench": "Measure latency and accuracy of everything that this machine can run.",
    "report": "Write report.html and report.md of a run.",
    "compare": "Compare bench results across runs and boards.",
    "predict": "Classify images with an artifact.",
    "serve": "Serve a page and a REST API over the run's artifacts.",
    "inspect": "Show layers, shapes, parameters, MACs and operators of a model or a run.",
    "analyze": "Show the quantisation error layer by layer, worst first.",
    "sensitivity": "Show what pruning would cost, share by share and layer by layer.",
    "train": "Fine-tune a trained ViT onto your own classes.",
    "pack": "Pack artifacts and images for a board.",
    "toolchain": "Install, list and remove vendors' compilers.",
    "doctor": "Show what each target finds on this machine, and how to fix what is missing.",
    "demo": "The whole way on drawn shapes: train, compress, build, bench, report.",
}


def _load(name: str) -> Any:
    """The real command: a module has either `command`, a function, or `app`, a Typer with subcommands."""
    module = importlib.import_module(f"vitedge.cli.{name}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False)
        app.command(name, help=COMMANDS[name])(module.command)
    command = typer.main.get_command(app)
    command.name = name
    return command


class LazyGroup(TyperGroup):
    """Lists the commands without importing them."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if self._listing:
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name], callback=None)
        return _load(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._listing = True
        super().format_help(ctx, formatter)


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"vitedge {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show Python's traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """vitedge puts a trained Vision Transformer on edge boards: compressed, compiled and measured.

    The three steps are `vitedge compress`, `vitedge build` and `vitedge bench`; a run is kept in ./vitedge-run.
    """


class _Warnings(logging.Handler):
    """Prints what the library logs as warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        from vitedge.cli.console import ConsoleReporter
        from vitedge.documents import printable

        ConsoleReporter().warn(printable(record.getMessage(), 2000))


def main() -> None:
    """Runs the command line; see failures.py for how it ends when something fails."""
    # --debug is taken before or after the command's name.
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    logging.getLogger("vitedge").addHandler(_Warnings(logging.WARNING))
    failures.run(lambda: app(args=arguments, prog_name="vitedge"), debug="--debug" in sys.argv)
