"""Command-line flags out of the fields of options classes, so that a flag, its TOML key and its help are one thing."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel

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


@dataclass(frozen=True)
class OptionField:
    """One field of an options class: a pydantic model, or a dataclass whose docstring lists its attributes."""

    name: str
    annotation: Any
    default: Any
    description: str


def fields_of(options: type[Any]) -> list[OptionField]:
    """The fields of an options class, in their order."""
    if issubclass(options, BaseModel):
        return [
            OptionField(n, f.annotation, f.get_default(call_default_factory=True), f.description or "")
            for n, f in options.model_fields.items()
        ]
    hints, texts = typing.get_type_hints(options), _attributes(options.__doc__ or "")
    return [OptionField(f.name, hints[f.name], f.default, texts.get(f.name, "")) for f in dataclasses.fields(options)]


def _attributes(docstring: str) -> dict[str, str]:
    """Name -> text, from the section "Attributes:" of a docstring."""
    texts: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(docstring).partition("Attributes:")[2].splitlines():
        found = re.match(r"    (\w+): (.*)", line)
        if found:
            name, texts[found.group(1)] = found.group(1), found.group(2)
        elif name and line.strip():
            texts[name] += " " + line.strip()
    return {key: text[:1].upper() + text[1:] for key, text in texts.items()}


def _help(field: OptionField, only: str) -> str:
    text = f"({only}) {field.description}" if only else field.description
    default = field.default
    plain = default is not None and not isinstance(default, BaseModel) and not dataclasses.is_dataclass(default)
    if plain and "(default" not in text:
        shown = ",".join(str(v) for v in default) if isinstance(default, tuple) else default
        text += f" (default: {shown})" if shown != "" else ""
    return text


def _parameter(flag: str, field: OptionField, panel: str, only: str) -> inspect.Parameter:
    kind = _flag_type(field.annotation)
    names = f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}"
    option = typer.Option(names, help=_help(field, only), rich_help_panel=panel, show_default=False)
    annotation = Annotated[Union[kind, None], option]  # type: ignore[valid-type]  # noqa: UP007
    return inspect.Parameter(
        flag.replace("-", "_"), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def with_flags(
    sections: dict[str, type[Any]],
    *,
    panels: dict[str, str] | None = None,
    names: dict[str, str | None] | None = None,
    tag: bool = False,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command one flag a field of each section's class.

    The command gets a parameter `given`: section -> {field: value} of the flags that were used. Where two sections
    have a flag of the same name, there is one flag, and both get its value.

    names: "section.field" -> another name of its flag, or None for a field that only TOML sets.
    tag: the help says which section a flag belongs to.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "given"]
        owners: dict[str, list[tuple[str, str]]] = {}
        parameters: dict[str, inspect.Parameter] = {}
        for section, options in sections.items():
            for field in fields_of(options):
                flag = (names or {}).get(f"{section}.{field.name}", field.name.replace("_", "-"))
                if flag is None:
                    continue
                panel = (panels or {}).get(section, section.capitalize())
                parameter = _parameter(flag, field, panel, section if tag else "")
                owners.setdefault(parameter.name, []).append((section, field.name))
                parameters.setdefault(parameter.name, parameter)

        def command(**values: Any) -> None:
            given: dict[str, dict[str, Any]] = {}
            for name, owned in owners.items():
                value = values.pop(name, None)
                if value is not None:
                    for section, field in owned:
                        given.setdefault(section, {})[field] = value
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
