"""Reading the files of /sys and /proc; recorded trees of boards are read in the same way."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path("/")


def read(path: Path) -> str | None:
    """The stripped text of such a file, or None where it is missing or refused."""
    try:
        return path.read_text(errors="replace").strip("\0 \n\t")
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """The number that such a file holds, or None."""
    text = read(path)
    return int(text) if text and re.fullmatch(r"-?\d{1,19}", text) else None


def number(path: Path) -> int:
    """The digits of a file's name, for sorting: policy10 comes after policy2."""
    digits = re.sub(r"\D", "", path.name)
    return int(digits) if digits else 0
