"""Command-line flags out of the fields of options classes, so that a flag, its TOML key and its help are one thing."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vitedge.errors import VitedgeError

_SIMPLE = (int, float, str, bool)


def _flag_type(annotation: Any) -> Any:
    """The type that typer parses: the simple ones and Literals as they are, all else as text."""
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [a for a in get_args(annotation) if a is not type(None)]
        return _flag_type(inner[0]) if len(inner) == 1 else str
    if annotation in _SIMPLE or get_origin(annotation) is Literal:
        return annotation
    return str


def _help(field: FieldInfo, only: str) -> str:
    text = field.description or ""
    if only:
        text = f"({only}) {text}"
    default = field.get_default(call_default_factory=True)
    if default is not None and not isinstance(default, BaseModel) and "(default" not in text:
        shown = ",".join(str(v) for v in default) if isinstance(default, tuple) else default
        text += f" (default: {shown})" if shown != "" else ""
    return text


def _parameter(name: str, field: FieldInfo, panel: str, only: str) -> inspect.Parameter:
    kind = _flag_type(field.annotation)
    flag = name.replace("_", "-")
    names = f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}"
    option = typer.Option(names, help=_help(field, only), rich_help_panel=panel, show_default=False)
    annotation = Annotated[Union[kind, None], option]  # type: ignore[valid-type]  # noqa: UP007
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def with_flags(
    sections: dict[str, type[BaseModel]], *, panels: dict[str, str] | None = None, tag: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command one flag a field of each section's class.

    The command gets a parameter `given`: section -> {field: value} of the flags that were used. Where two sections
    have a field of the same name, there is one flag, and both get its value. With `tag`, the help says which
    section a flag belongs to.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "given"]
        owners: dict[str, list[str]] = {}
        parameters: dict[str, inspect.Parameter] = {}
        for section, model in sections.items():
            for name, field in model.model_fields.items():
                owners.setdefault(name, []).append(section)
                panel = (panels or {}).get(section, section.capitalize())
                parameters.setdefault(name, _parameter(name, field, panel, section if tag else ""))

        def command(**values: Any) -> None:
            given: dict[str, dict[str, Any]] = {}
            for name, sections_of in owners.items():
                value = values.pop(name, None)
                if value is not None:
                    for section in sections_of:
                        given.setdefault(section, {})[name] = value
            function(**values, given=given)

        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        signature = inspect.Signature(keyword + list(parameters.values()))
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        command.__name__ = function.__name__
        command.__doc__ = function.__doc__
        return command

    return decorate


def only_for(target: str, given: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The flags of that target; raises VitedgeError where one of another target was given."""
    mine = given.get(target, {})
    for other, values in given.items():
        for name in values:
            if other != target and name not in mine:
                raise VitedgeError(
                    f"The target '{target}' has no option --{name.replace('_', '-')}.",
                    f"It belongs to the target '{other}'.",
                    f"Leave it out, or give --target {other}.",
                )
    return mine
