"""The one door for documents that others wrote: JSON and TOML are bounded, then validated, or refused.

    record = documents.load(path, Manifest)          # a pydantic model from a JSON file
    values = documents.read_json(path)               # plain values, bounded, where no model is known
    text = documents.dump(record)                    # JSON without NaN or infinity

Whatever is wrong with a document ends as one VitedgeError that names it. Nothing is allocated before its size, its
depth and its numbers are known to be sane: deeply nested JSON ends an interpreter (a segmentation fault), an integer of
a million digits keeps it busy for minutes, and a FIFO blocks it for good.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

from vitedge.errors import VitedgeError, printable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_BYTES = 64 * 2**20
MOST_DEPTH = 64
MOST_DIGITS = 40
_INTEGER = 2**64  # sizes, seeds and nanoseconds stay below
_BRACKETS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]', re.DOTALL)

T = TypeVar("T")
# A JSON or TOML object whose keys somebody else chooses: a target's metadata, what a step reports, a user's file.
Json = dict[str, Any]


class Document(BaseModel):
    """Base of what stands in a document: frozen, every key known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_bytes(path: str | Path, *, most: int = MOST_BYTES, todo: str = "Check the path.", exit_code: int = 2) -> bytes:
    """The bytes of a regular file of at most `most` bytes. Raises VitedgeError, also for a FIFO or a device."""

    def refused(why: str) -> VitedgeError:
        return VitedgeError(f"'{printable(path)}' can't be read.", why, todo, exit_code=exit_code)

    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer that never comes.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        number = getattr(error, "errno", None)
        why = "There is no such file." if number == errno.ENOENT else f"{getattr(error, 'strerror', None) or error}."
        raise refused(why) from error
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise refused("It is a folder." if stat.S_ISDIR(facts.st_mode) else "It is no regular file.")
        if facts.st_size > most:
            raise refused(f"It has {facts.st_size:,} bytes; a file of this kind has at most {most:,}.")
        with open(handle, "rb", closefd=False) as file:
            data = file.read(most + 1)
    except OSError as error:
        raise refused(f"{error.strerror}.") from error
    finally:
        os.close(handle)
    if len(data) > most:  # it grew meanwhile, or a file system without sizes (/proc)
        raise refused(f"It has more than {most:,} bytes.")
    return data


def read_text(path: str | Path, *, most: int = MOST_BYTES, todo: str = "Check the path.", exit_code: int = 2) -> str:
    """The same as text: UTF-8 (a byte order mark is skipped). Raises VitedgeError."""
    data = read_bytes(path, most=most, todo=todo, exit_code=exit_code)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        why = f"It is no text in UTF-8 ({error.reason} at byte {error.start})."
        raise VitedgeError(f"'{printable(path)}' can't be read.", why, todo, exit_code=exit_code) from error


def parse_json(data: bytes | str, name: str | Path, *, todo: str = "", exit_code: int = 2) -> Any:
    """The values of a JSON document. Raises VitedgeError: no JSON, too deep, numbers out of bounds, NaN, no Unicode."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    try:
        _check_depth(raw)
        value = json.loads(
            raw.decode("utf-8-sig"), parse_int=_integer, parse_float=_finite, parse_constant=_no_constant
        )
        _check(value)
    except (ValueError, RecursionError) as error:
        raise VitedgeError(
            f"'{printable(name)}' is not valid JSON.", _reason(error), todo, exit_code=exit_code
        ) from error
    return value


def parse_toml(data: bytes | str, name: str | Path, *, todo: str = "", exit_code: int = 2) -> Json:
    """The values of a TOML document, under the same bounds. Raises VitedgeError."""
    try:
        value = tomllib.loads(data.decode("utf-8") if isinstance(data, bytes) else data)
        _check(value)
    except (ValueError, RecursionError) as error:  # tomllib recurses in Python, so this one can be caught
        raise VitedgeError(
            f"'{printable(name)}' is not valid TOML.", _reason(error), todo, exit_code=exit_code
        ) from error
    return value


def read_json(path: str | Path, *, todo: str = "", most: int = MOST_BYTES, exit_code: int = 2) -> Any:
    """The values of a JSON file. Raises VitedgeError."""
    data = read_bytes(path, most=most, todo=todo or "Check the path.", exit_code=exit_code)
    return parse_json(data, path, todo=todo, exit_code=exit_code)


def read_toml(path: str | Path, *, todo: str = "", most: int = 2**20, exit_code: int = 2) -> Json:
    """The values of a TOML file. Raises VitedgeError."""
    data = read_bytes(path, most=most, todo=todo or "Check the path.", exit_code=exit_code)
    return parse_toml(data, path, todo=todo, exit_code=exit_code)


def load(path: str | Path, kind: type[T], *, todo: str = "", most: int = MOST_BYTES, exit_code: int = 2) -> T:
    """A JSON file as `kind`: a pydantic model, a dataclass, `dict[str, float]`. Raises VitedgeError."""
    return validate(
        read_json(path, todo=todo, most=most, exit_code=exit_code), kind, path, todo=todo, exit_code=exit_code
    )


def parse(data: bytes | str, kind: type[T], name: str | Path, *, todo: str = "", exit_code: int = 2) -> T:
    """The same from the document's bytes; `name` is what errors call it."""
    return validate(parse_json(data, name, todo=todo, exit_code=exit_code), kind, name, todo=todo, exit_code=exit_code)


def validate(value: Any, kind: type[T], name: str | Path, *, todo: str = "", exit_code: int = 2) -> T:
    """Plain values as `kind`. Raises VitedgeError that names the first three wrong keys."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        found = [f"{_key(e['loc'])}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors(include_url=False)]
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        why = printable("; ".join(found[:3]) + more, 600) + "."
        raise VitedgeError(
            f"'{printable(name)}' does not hold what it should.", why, todo, exit_code=exit_code
        ) from error


def dump(value: Any, *, indent: int | None = 2, default: Callable[[Any], Any] | None = None) -> str:
    """JSON of plain values or models, with a line end. Raises VitedgeError where NaN or infinity is in it."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=default) + "\n"
    except ValueError as error:
        raise VitedgeError(
            "A result is not a number.", f"{_not_finite(value)} is NaN or infinite.", "Report this.", exit_code=1
        ) from error


def plain_path(text: str) -> str:
    """`text` where it is a path that stays below its root by its words: relative, normalised, with forward slashes.

    Raises ValueError. Links are seen by `inside`, which needs the root.
    """
    if (
        not text
        or text.startswith("/")
        or "\\" in text
        or PurePosixPath(text).as_posix() != text
        or {".", ".."} & set(text.split("/"))
        or any(unicodedata.category(c) in ("Cc", "Cs") for c in text)
        or any(len(part.encode()) > 255 for part in text.split("/"))
    ):
        raise ValueError(f"'{printable(text)}' is no plain relative path")
    return text


RelativePath = Annotated[str, AfterValidator(plain_path)]


def inside(root: Path, relative: str, *, name: str | Path = "", todo: str = "") -> Path:
    """`root / relative`, which stays below `root`, links followed. Raises VitedgeError.

    Args:
        name: the document that holds the path, for the error.
    """
    try:
        path = root / plain_path(relative)
        if path.resolve().is_relative_to(root.resolve()):
            return path
        why = f"'{printable(relative)}' is a link that leads out of the folder."
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        why = f"{error}."
    where = printable(name or root)
    raise VitedgeError(f"'{where}' names a file outside '{printable(root)}'.", why, todo or "Use a run that you trust.")


def _check_depth(data: bytes) -> None:
    depth = 0
    for match in _BRACKETS.finditer(data):
        token = match[0]
        if token in b"[{":
            depth += 1
            if depth > MOST_DEPTH:
                raise ValueError(f"it is nested more than {MOST_DEPTH} deep")
        elif token in b"]}":
            depth -= 1


def _check(value: Any) -> None:
    """Raises ValueError for numbers, depths and strings out of bounds; without recursion."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MOST_DEPTH + 1:
            raise ValueError(f"it is nested more than {MOST_DEPTH} deep")
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += one.keys()
                below += one.values()
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str):
                if not one.isascii():
                    one.encode()  # a lone surrogate can't be written or printed again
            elif isinstance(one, int) and abs(one) > _INTEGER:
                raise ValueError("an integer is out of bounds")
            elif isinstance(one, float) and not math.isfinite(one):
                raise ValueError("a number is NaN or infinite")
        level = below


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {printable(text, 40)} is out of bounds")
    return number


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"It is nested more than {MOST_DEPTH} deep."
    if isinstance(error, UnicodeError):
        return "Its text is no Unicode."
    text = printable(error)
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location)) or "the document"


def _not_finite(value: Any, at: str = "") -> str:
    """Where the first NaN or infinity stands, as dotted keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    found = next((f for key, v in items if (f := _not_finite(v, f"{at}.{key}"))), "")
    return found or (at.lstrip(".") or "It" if isinstance(value, float) and not math.isfinite(value) else "")
