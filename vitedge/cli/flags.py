"""Command-line flags out of the fields of options classes, so that a flag, its TOML key and its help are one thing."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel

from vitedge.bundle import DEFAULT_RUN
from vitedge.config import configure, keywords_of
from vitedge.options import OptionField
from vitedge.targets import names

_SIMPLE = (int, float, str, bool)
PANELS = {
    "model": "Model",
    "calib": "Calibration images",
    "prune": "Pruning",
    "distill": "Training (--recover distill, --quantize qat)",
    "steps": "Quantisation",
    "quantize": "Quantisation",
    "qat": "Training (--recover distill, --quantize qat)",
    "condition": "Conditioning",
    "export": "ONNX",
    "train": "Data and result",
    "fine_tune": "What learns",
    "loop": "Training",
    "augment": "Augmentation",
}

# Parameters that several commands have.
RunFlag = Annotated[Path, typer.Option("--run", help="Run folder.")]
ConfigFlag = Annotated[Path | None, typer.Option("--config", help="TOML file; flags override it.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="JSON on stdout, errors too.")]
RUN = Path(DEFAULT_RUN)


def _flag_type(annotation: Any) -> Any:
    """The type that typer parses: the simple ones, Literals, lists of text; all else as text."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _flag_type(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        inner = [a for a in get_args(annotation) if a is not type(None)]
        return _flag_type(inner[0]) if len(inner) == 1 else str
    if origin in (tuple, list):
        return list[str]
    return annotation if annotation in _SIMPLE or origin is Literal else str


def _help(field: OptionField, only: str) -> str:
    text = f"({only}) {field.description}" if only else field.description
    default = field.default
    if "(default" in text or default in (None, "", ()) or isinstance(default, (bool, BaseModel)):
        return text if default is not True else f"{text} (default: on)"
    return f"{text} (default: {','.join(default) if isinstance(default, tuple) else default})"


def _parameter(keyword: str, section: str, field: OptionField, targets: tuple[str, ...] = ()) -> inspect.Parameter:
    """targets: those that have this option, where not all have it."""
    kind = _flag_type(field.annotation)
    flag = "--" + keyword.replace("_", "-")
    spelt = [f"{flag}/--no-{keyword.replace('_', '-')}" if kind is bool else flag, *([field.short] * bool(field.short))]
    option = typer.Option(
        *spelt,
        help=_help(field, ", ".join(targets)),
        rich_help_panel=PANELS.get(section, targets[0] if targets else "Options"),
        show_default=False,
        hidden=field.expert,
        metavar="<text>" if kind == list[str] else None,
    )
    annotation = Annotated[Union[kind, None], option]  # type: ignore[valid-type]  # noqa: UP007
    return inspect.Parameter(keyword, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _targets(owners: list[tuple[str, OptionField]]) -> tuple[str, ...]:
    """The targets whose sections these are; none where all have the option, or it is not of a target."""
    found = [section.partition(".")[2] for section, _ in owners if section.startswith("build.")]
    return () if len(found) == len(names()) else tuple(found)


def _show_all(context: typer.Context, wanted: bool) -> None:
    if wanted:
        for parameter in context.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]
        print(context.get_help(), end="")
        raise typer.Exit


_HELP_ALL = inspect.Parameter(
    "help_all",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool,
        typer.Option("--help-all", help="Show the expert options too.", is_eager=True, callback=_show_all),
    ],
)


def with_flags(name: str) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Gives the command of that name one flag a field of its options (see `config.COMMANDS`).

    The command gets a parameter `given`: keyword -> value of the flags that were used. A parameter of its own takes
    the place of a flag of the same name. What it returns is the exit status (see failures.py).
    """

    def decorate(function: Callable[..., int | None]) -> Callable[..., int | None]:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "given"]
        found = {k: v for k, v in keywords_of(name).items() if k not in {p.name for p in own}}
        owners = {keyword: several[0] for keyword, several in found.items()}
        flags = [_parameter(keyword, *owners[keyword], _targets(several)) for keyword, several in found.items()]

        def command(help_all: bool = False, **values: Any) -> int | None:
            used = {keyword: values.pop(keyword) for keyword in owners}
            given = {keyword: value for keyword, value in used.items() if value is not None and value != []}
            if name != "build":  # whose target says which options there are
                configure(name, given, values.get("config"))  # a wrong option is told before a run or a model is read
            return function(**values, given=given)

        keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        extra = [_HELP_ALL] if any(owner[1].expert for owner in owners.values()) else []
        signature = inspect.Signature(keyword_only + flags + extra)
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        command.__name__ = function.__name__
        command.__doc__ = function.__doc__
        return command

    return decorate
