"""labels.csv: which image has which label, in the dialects that people have."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from vitedge import documents
from vitedge.data.classes import class_indices, some
from vitedge.data.scan import find_images
from vitedge.errors import VitedgeError

# Names of the columns in any case, the first that is there.
_FILE = (
    *("file", "filename", "file_name", "image", "img", "path", "filepath", "file_path", "image_path", "image_file"),
    *("image_file_path", "image_name", "img_path", "image_id", "id_code"),
)
_LABEL = (
    *("label", "class", "category", "target", "class_name", "label_name", "class_id", "label_id", "category_id"),
    *("class_index", "species", "breed", "y"),
)
_LABELS = ("labels", "classes", "tags", "targets", "categories")
_DELIMITERS = ",;\t|"


def read_labels(
    path: Path, classes: tuple[str, ...] | None, class_count: int | None
) -> tuple[tuple[str, ...], np.ndarray, list[str]]:
    """The rows of a labels.csv: files, their labels, and what should be said of how they were read.

    Taken are commas, semicolons, tabs and bars between the columns, usual names of the columns in any case, UTF-8
    and UTF-16, paths with the folder's own name in front or with backslashes, names without suffix, and no header
    where the first column holds files.

    Returns:
        The paths below the folder of the file, and int64 [N] for a column `label`, or uint8 [N, classes] (0 or 1) for
        a column `labels`, which holds labels separated by `;`.

    Raises:
        VitedgeError: columns that miss, no rows, files that do not exist, lie elsewhere or come twice, labels that
            are neither an index below `class_count` nor one of `classes`. All are counted, the first five named.
    """
    rows, several = _read(path)
    files = _files(path, [file for file, _ in rows])
    twice = [file for file, count in Counter(files).items() if count > 1]
    _refuse(path, twice, "has files twice", "Keep one row.")
    texts = [[t.strip() for t in re.split("[;|]", text) if t.strip()] if several else [text] for _, text in rows]
    if several and class_count is None:
        raise VitedgeError(
            f"{path} has several labels an image, and the number of classes is not known.",
            "",
            f"Put a classes.txt with one class name a line into {path.parent}.",
        )
    meaning, said = class_indices((t for row in texts for t in row), classes, class_count, path.parent)
    wrong = []
    for (file, text), row in zip(rows, texts, strict=True):
        if reason := next((meaning[t] for t in row if isinstance(meaning[t], str)), None):
            wrong.append(f"{file}: {text!r} is {reason}")
    span = "" if class_count is None else f" from 0 to {class_count - 1}"
    _refuse(path, wrong, "has wrong labels", f"A label is a class index{span}, or a name of classes.txt.{_hint(wrong)}")
    if not several:
        return files, np.array([meaning[row[0]] for row in texts], np.int64), said
    hot = np.zeros((len(rows), class_count or 0), np.uint8)
    for at, row in enumerate(texts):
        hot[at, np.array([meaning[t] for t in row], np.int64)] = 1
    return files, hot, said


def _hint(wrong: list[str]) -> str:
    return " Where they are counted from 1, subtract 1." if any("out of range" in line for line in wrong) else ""


def _read(path: Path) -> tuple[list[tuple[str, str]], bool]:
    """(file, text of its labels) of each row, and whether an image may have several labels."""
    data = documents.read_bytes(path, most=2**28, todo=_TODO)
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = max(_DELIMITERS, key=first.count)
        rows = [
            [cell.strip() for cell in row]
            for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
            if any(cell.strip() for cell in row)
        ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise VitedgeError(f"{path} could not be read.", f"{error}.", _TODO) from error
    header = rows[0] if rows else []
    words = [cell.casefold().replace(" ", "_") for cell in header]
    file = next((words.index(name) for name in _FILE if name in words), None)
    label = next((words.index(name) for name in (*_LABEL[:1], *_LABELS, *_LABEL[1:]) if name in words), None)
    if file is None and label is None and len(header) == 2 and _is_file(path.parent, header[0]):
        file, label = 0, 1
    else:
        rows = rows[1:]
    if file is None or label is None:
        columns = some(header) or "none"
        raise VitedgeError(f"{path} lacks the columns `file` and `label`.", f"Its columns: {columns}.", _TODO)
    if not rows:
        raise VitedgeError(f"{path} has no rows.", "", _TODO)
    wide = [row for row in rows if any(row[len(header) :])]
    _refuse(path, [delimiter.join(row) for row in wide], "has rows with more columns than its header", _TODO)
    cells = [row + [""] * len(header) for row in rows]
    pairs = [(row[file], row[label]) for row in cells]
    several = words[label] == "labels" or (words[label] in _LABELS and any(_several(text) for _, text in pairs))
    return pairs, several


def _several(text: str) -> bool:
    return ";" in text or "|" in text


def _files(path: Path, names: list[str]) -> tuple[str, ...]:
    """The images that these names mean, below the folder of `path`."""
    root = path.parent
    files: list[str | None] = [_found(root, name) for name in names]
    if None in files:
        # Names without folder or suffix mean the only image of that name.
        known = defaultdict(set)
        for image in find_images(root):
            for key in {image.rpartition("/")[2], PurePosixPath(image).stem, image.rpartition(".")[0]}:
                known[key].add(image)
        for at, name in enumerate(names):
            key = _plain(root, name)
            match = known.get(key) or known.get(key.rpartition("/")[2]) or set()
            if files[at] is None and len(match) == 1:
                files[at] = next(iter(match))
    missing = [name or "(no name)" for name, file in zip(names, files, strict=True) if file is None]
    _refuse(path, missing, "names files that do not exist", f"Paths count from {root}, and lead to images in it.")
    return tuple(file for file in files if file is not None)


def _plain(root: Path, name: str) -> str:
    """The path below `root` that `name` means by its words: no backslashes, no dots, no root in front."""
    if "\\" in name and not _is_file(root, name):
        name = PureWindowsPath(name).as_posix()
    if name.startswith("/") and (parts := PurePosixPath(name)).is_relative_to(whole := root.absolute().as_posix()):
        name = parts.relative_to(whole).as_posix()
    return PurePosixPath(name).as_posix()


def _found(root: Path, name: str) -> str | None:
    """`name` where it is a file below `root`, also after the name of `root` or of its parents in front."""
    plain = _plain(root, name)
    parts = PurePosixPath(plain).parts
    if not name or plain.startswith("/") or ".." in parts:
        return None
    below = [parts[n + 1 :] for n, part in enumerate(parts[:-1]) if part == root.resolve().name]
    return next((file for file in map("/".join, (parts, *below)) if _is_file(root, file)), None)


def _is_file(root: Path, name: str) -> bool:
    try:
        return bool(name) and (root / name).is_file()
    except (OSError, ValueError):  # a name that is too long, or has a NUL byte
        return False


def _refuse(path: Path, found: list[str], what: str, todo: str) -> None:
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        shown = "; ".join(documents.printable(line) for line in found[:5])
        raise VitedgeError(f"{path} {what}.", f"{len(found)} in all: {shown}{more}.", todo)


_TODO = "Write the header `file,label`, then one row an image: its path below the folder, and its class index or name."
