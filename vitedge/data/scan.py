"""The image files below a folder."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from vitedge.data.classes import natural_key, some
from vitedge.data.image import UNREAD, is_image
from vitedge.errors import VitedgeError

# What archives and desktops leave in a folder, beside hidden files.
_LITTER = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN"})


def subfolders(root: Path) -> list[str]:
    """Names of the folders in `root` in natural order, hidden ones left out. Raises VitedgeError."""
    try:
        return sorted((e.name for e in os.scandir(root) if _visible(e.name) and os.path.isdir(e.path)), key=natural_key)
    except OSError as error:
        raise _unreadable(root, error) from error


def find_images(root: Path) -> tuple[str, ...]:
    """Paths of all images below `root`, sorted, with forward slashes; hidden files and folders are left out.

    Only regular files count. Each real folder is visited once, whatever links lead to it, and under its own name
    where it lies below `root` too.

    Raises VitedgeError: names that are no Unicode, or a folder that can't be read.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting: list[Path] = [Path(root)]
    links: list[Path] = []
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        try:
            facts = folder.stat()
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError as error:
            raise _unreadable(folder, error) from error
        for entry in entries:
            path = Path(entry.path)
            if path.is_dir():  # unlike the entry's, they are False for a link to itself
                if _visible(entry.name):
                    (links if entry.is_symlink() else waiting).append(path)
            elif is_image(path) and path.is_file():
                found.append(path.relative_to(root).as_posix())
    if wrong := [name for name in found if not _is_text(name)]:
        raise VitedgeError(
            f"{root} has files whose names are no Unicode.", f"{len(wrong)} in all: {some(wrong)}.", "Rename them."
        )
    return tuple(sorted(found))


def no_images(root: Path, todo: str) -> VitedgeError:
    """The error for a folder without images, which says what lies there instead."""
    suffixes: Counter[str] = Counter()
    for _, _, names in os.walk(root):
        suffixes.update(Path(name).suffix.lower() for name in names if name[0] != ".")
    suffix, count = next(iter(suffixes.most_common(1)), ("", 0))
    if suffix in UNREAD:
        kind, convert = UNREAD[suffix]
        return VitedgeError(f"{root} holds no images that can be read.", f"It holds {count} {kind}.", convert)
    why = f"It holds {count} files that end in '{suffix}'." if suffix else ""
    return VitedgeError(f"{root} holds no images.", why, todo)


def _visible(name: str) -> bool:
    return name[0] != "." and name not in _LITTER


def _is_text(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= c <= "\udfff" for c in name)


def _unreadable(folder: Path, error: OSError) -> VitedgeError:
    return VitedgeError(f"The folder {folder} can't be read.", f"{error.strerror}.", "Check its permissions.")
