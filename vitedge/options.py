"""One type of options for everything that can be chosen. A field is a TOML key, a flag and a keyword of the API at
once; its description is the help text of all three. Imports next to nothing: every room defines its options with it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from vitedge.documents import printable
from vitedge.errors import VitedgeError


@dataclass(frozen=True)
class Cli:
    """What a field says about its flag: `Annotated[int, EXPERT] = Field(...)`.

    Attributes:
        name: of its flag and keyword, where it is not the field's own; "" for none.
        expert: shown by --help-all only.
        local: names something that is executed, so it is never read from a run folder and never saved in one.
        short: a second flag of one letter, such as "-o".
    """

    name: str | None = None
    short: str = ""
    expert: bool = False
    local: bool = False


EXPERT = Cli(expert=True)
LOCAL = Cli(local=True)


def _split(value: Any) -> Any:
    """Lists may be written with commas: "a,b" or ["a,b", "c"]."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) for t in texts):
        return value
    return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
# A seed that every library takes: numpy, torch and scikit-learn want at most 32 bits.
SEED_MAX = 2**32 - 1


# Kind ("observer") -> names that may be chosen: of ours, and of those that somebody else registers.
_CHOICES: dict[str, list[str]] = {}


def register(kind: str, *names: str) -> None:
    """Makes names that may be chosen for the options of that kind: "observer", "importance"."""
    _CHOICES.setdefault(kind, []).extend(name for name in names if name not in _CHOICES.get(kind, ()))


def choice(kind: str, *names: str) -> AfterValidator:
    """For a field of text that is one of these names, or of those registered since."""
    register(kind, *names)

    def check(value: str) -> str:
        if value not in _CHOICES[kind]:
            raise ValueError(f"there is no such {kind}; choose one of {', '.join(_CHOICES[kind])}")
        return value

    return AfterValidator(check)


class Options(BaseModel):
    """Base of all options: frozen, no unknown keys, no NaN and no infinity. Raises VitedgeError that names every
    wrong field."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            self.__pydantic_validator__.validate_python(values, self_instance=self)
        except ValidationError as error:
            raise told(type(self), error, type(self).__name__) from error

    # Inside a larger model the fields are validated without this __init__, so that all errors come together.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


@dataclass(frozen=True)
class OptionField:
    """A field of an options class as the command line and the API show it. `keyword`: None where it has no flag."""

    name: str
    keyword: str | None
    annotation: Any
    default: Any
    description: str
    expert: bool
    local: bool
    short: str

    @property
    def flag(self) -> str:
        """As it is typed."""
        return "--" + (self.keyword or self.name).replace("_", "-")


def fields_of(options: type[BaseModel]) -> list[OptionField]:
    """The fields of an options class, in their order."""
    found = []
    for name, field in options.model_fields.items():
        marks = [m for m in field.metadata if isinstance(m, Cli)]
        named = next((m.name for m in marks if m.name is not None), name)
        found.append(
            OptionField(
                name,
                named or None,
                field.annotation,
                field.get_default(),
                field.description or "",
                any(m.expert for m in marks),
                any(m.local for m in marks),
                next((m.short for m in marks if m.short), ""),
            )
        )
    return found


def told(model: type[BaseModel], error: ValidationError, source: str, todo: str = "") -> VitedgeError:
    """The user's error for options that pydantic refused: every wrong key or value, the nearest name of a key."""
    found: dict[str, str] = {}
    for e in error.errors():
        text = _explain(model, e)
        found.setdefault(_flag(model, e) or text, text)  # a flag of several sections is wrong in each, and told once
    lines = list(found.values())
    what = f"{source[0].upper()}{source[1:]} has {len(lines)} wrong option{'s' if len(lines) > 1 else ''}."
    return VitedgeError(what, " ".join(lines), todo)


def _flag(model: type[BaseModel], error: Any) -> str | None:
    """The flag, and the value it was given, that an error is of."""
    field = _fields(model, error).get(str(error["loc"][-1])) if error["loc"] else None
    return f"{field.flag}={error['input']!r}" if field and field.keyword else None


def _fields(model: type[BaseModel], error: Any) -> dict[str, OptionField]:
    """Those of the section that an error is in, by name."""
    section = _section(model, [str(part) for part in error["loc"]])
    return {f.name: f for f in fields_of(section)} if section else {}


def _explain(model: type[BaseModel], error: Any) -> str:
    where, fields = [str(part) for part in error["loc"]], _fields(model, error)
    name = ".".join(where)
    if error["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        field = fields.get(where[-1]) if where else None
        flag = f" ({field.flag})" if field and field.keyword else ""
        shown = f"{name} = {printable(repr(error['input']), 60)}{flag}: " if where else ""
        return f"{shown}{error['msg'].removeprefix('Value error, ')}."
    near = difflib.get_close_matches(where[-1], fields, 1, 0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(fields)}."
    return f"There is no option '{name}'; {hint}"


def _section(model: type[BaseModel], where: list[str]) -> type[BaseModel] | None:
    """The class of options that holds the field at that place."""
    for part in where[:-1]:
        field = model.model_fields.get(part)
        if field is None:
            return None
        classes = [a for a in (field.annotation, *get_args(field.annotation)) if isinstance(a, type)]
        inner = [a for a in classes if issubclass(a, BaseModel)]
        if not inner:
            return model
        model = inner[0]
    return model
