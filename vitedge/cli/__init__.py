"""The command line. One file a command; a command's module is imported only when it is called."""

from __future__ import annotations

import difflib
import importlib
import logging
import sys
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from vitedge import __version__
from vitedge.cli import failures
from vitedge.errors import VitedgeError

# Name, which is also the module's, -> help. The order is that of `vitedge --help`.
COMMANDS: dict[str, str] = {
    "compress": "Import a trained ViT, compress it, and write its ONNX graphs.",
    "search": "Find the best model for a budget: many candidates predicted, the best made and measured.",
    "build": "Build what a target runs, from the run's ONNX graphs.",
    "bench": "Measure latency and accuracy of everything that this machine can run.",
    "report": "Write report.html and report.md of a run.",
    "compare": "Compare bench results across runs and boards.",
    "predict": "Classify images with an artifact.",
    "serve": "Serve a page and a REST API over the run's artifacts.",
    "inspect": "Show layers, shapes, parameters, MACs and operators of a model or a run.",
    "analyze": "Show the quantisation error layer by layer, worst first.",
    "sensitivity": "Show what pruning would cost, share by share and layer by layer.",
    "profile": "Fit what each kind of work takes on this machine, for search and pruning.",
    "train": "Fine-tune a trained ViT onto your own classes.",
    "pack": "Pack artifacts and images for a board.",
    "toolchain": "Install, list and remove vendors' compilers.",
    "doctor": "Show what each target finds on this machine, and how to fix what is missing.",
    "demo": "The whole way on drawn shapes: train, compress, build, bench, report.",
}


# What each `--help` ends with.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "compress": (
        "vitedge compress --model vit_b_16 --calib photographs/ --prune 0.3 --quantize static",
        "vitedge compress --model my-vit/ --calib photographs/ --quantize static --preset full --max-drop 0.5",
    ),
    "search": (
        "vitedge search --model my-vit/ --calib photographs/ --target openvino --budget p50-ms=5 --minutes 30",
        "vitedge search --model my-vit/ --calib photographs/ --target rknn --budget cycles=1.2e6 --max-drop 1.0",
        "vitedge search --model my-vit/ --calib photographs/ --storage postgresql://me@server/studies",
    ),
    "build": (
        "vitedge build --precision int8",
        "vitedge build --target rknn --platform rk3588",
    ),
    "bench": (
        "vitedge bench --data labelled-photographs/ --limit 500 --gate top1-drop=1.0,p50-ms=20",
        "vitedge bench --host user@board --data labelled-photographs/",
        "vitedge bench pack.tar --json result.json",
    ),
    "report": ("vitedge report --max-drop 0.5 --max-ms 20 -o report.html",),
    "compare": ("vitedge compare before.json after.json --fail",),
    "predict": ("vitedge predict cat.jpg more-images/ --top 3",),
    "inspect": ("vitedge inspect", "vitedge inspect my-vit/ --json"),
    "analyze": ("vitedge analyze --images 32 --top 10",),
    "sensitivity": ("vitedge sensitivity --shares 0.1,0.2,0.3 --images 256",),
    "profile": ("vitedge profile my-vit/ --target openvino --precision int8,fp32", "vitedge profile --target rknn"),
    "train": ("vitedge train --model vit_b_16 --data my-classes/ --out my-vit --minutes 30",),
    "pack": ("vitedge pack --data labelled-photographs/ --limit 500 -o pack.tar",),
    "serve": ("vitedge serve", 'vitedge serve --host 0.0.0.0 --token "$(openssl rand -hex 16)"'),
    "toolchain": ("vitedge toolchain install rknn", "vitedge toolchain list"),
    "doctor": ("vitedge doctor --json",),
    "demo": ("vitedge demo --dir vitedge-demo --minutes 2",),
}


def _without_types(params: Any) -> Any:
    """The parameters; the help of flags that take no value shows no type."""
    for parameter in params:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return params


class Command(TyperCommand):
    """A command of vitedge."""

    def get_params(self, ctx: Any) -> Any:
        return _without_types(super().get_params(ctx))


def _load(name: str) -> Any:
    """The real command: a module has either `command`, a function, or `app`, a Typer with subcommands."""
    module = importlib.import_module(f"vitedge.cli.{name}")
    epilog = "\n\n".join(["Examples:", *(f"  {example}" for example in EXAMPLES.get(name, ()))])
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode="rich")
        app.command(name, help=COMMANDS[name], cls=Command, epilog=epilog)(module.command)
    command = typer.main.get_command(app)
    command.name, command.epilog = name, epilog
    return command


class LazyGroup(TyperGroup):
    """Lists the commands without importing them."""

    _listing = False

    def get_params(self, ctx: Any) -> Any:
        return _without_types(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if self._listing:
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name], callback=None)
        return _load(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, 1, 0.5)
            hint = f"Did you mean '{near[0]}'?" if near else ""
            raise VitedgeError(f"No such command '{args[0]}'.", hint, "`vitedge --help` lists the commands.")
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._listing = True
        super().format_help(ctx, formatter)


app = typer.Typer(
    cls=LazyGroup,
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
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version.")
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


def _json_file(argument: str, after: str) -> list[str]:
    return [argument, "-"] if argument == "--json" and after.startswith("-") and after != "-" else [argument]


def main() -> None:
    """Runs the command line; see failures.py for how it ends when something fails."""
    # --debug is taken before or after the command's name.
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    logging.getLogger("vitedge").addHandler(_Warnings(logging.WARNING))
    if arguments[:1] == ["bench"]:
        # Its --json takes a file, or nothing for stdout.
        arguments = [w for a, after in pairwise([*arguments, "--"]) for w in _json_file(a, after)]
    failures.run(lambda: app(args=arguments, prog_name="vitedge", standalone_mode=False), debug="--debug" in sys.argv)
