"""labels.csv: which image has which label."""

from __future__ import annotations

import csv
import posixpath
import re
from collections import Counter
from pathlib import Path

import numpy as np

from vitedge.errors import VitedgeError


def read_labels(
    path: Path, classes: tuple[str, ...] | None, class_count: int | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """The rows of a labels.csv: files, and their labels.

    Returns:
        The paths as they are written, below the folder of the file, and int64 [N] for a column `label`, or
        uint8 [N, classes] (0 or 1) for a column `labels`, which holds labels separated by `;`.

    Raises:
        VitedgeError: columns that miss, no rows, files that do not exist or come twice, labels that are
            neither an index below `class_count` nor one of `classes`. All are counted, the first five named.
    """
    rows, column = _read(path)
    files = tuple(row["file"].strip() for row in rows)
    _refuse(
        path,
        [file for file, count in Counter(map(posixpath.normpath, files)).items() if count > 1],
        "has files twice",
        "Keep one row.",
    )
    _refuse(
        path,
        [file or "(no name)" for file in files if not file or not (path.parent / file).is_file()],
        "names files that do not exist",
        f"Paths count from {path.parent}.",
    )
    if column == "label":
        single = [_index(row["label"], classes, class_count) for row in rows]
        _refuse_labels(
            path, rows, column, [isinstance(index, str) and index for index in single], class_count
        )
        return files, np.array(single, np.int64)
    if class_count is None:
        raise VitedgeError(
            f"{path} has several labels an image, and the number of classes is not known.",
            "",
            f"Put a classes.txt with one class name a line into {path.parent}.",
        )
    several = [
        [_index(text, classes, class_count) for text in row["labels"].split(";") if text.strip()]
        for row in rows
    ]
    wrong = [next((index for index in indices if isinstance(index, str)), False) for indices in several]
    _refuse_labels(path, rows, column, wrong, class_count)
    hot = np.zeros((len(rows), class_count), np.uint8)
    for row, indices in enumerate(several):
        hot[row, np.array(indices, np.int64)] = 1
    return files, hot


def _read(path: Path) -> tuple[list[dict[str, str]], str]:
    """The rows with their strings, and the name of the label column."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, skipinitialspace=True, restval="")
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise VitedgeError(f"{path} could not be read.", f"{error}.", _TODO) from error
    column = next((name for name in ("label", "labels") if name in header), None)
    if "file" not in header or column is None:
        found = ", ".join(header) or "none"
        raise VitedgeError(f"{path} lacks the columns `file` and `label`.", f"Its columns: {found}.", _TODO)
    if not rows:
        raise VitedgeError(f"{path} has no rows.", "", _TODO)
    return rows, column


def _index(text: str, classes: tuple[str, ...] | None, class_count: int | None) -> int | str:
    """The index that a label means, or why it means none."""
    text = text.strip()
    if re.fullmatch(r"[+-]?[0-9]+", text):
        index = int(text)
        if index < 0 or (class_count is not None and index >= class_count):
            return "out of range"
        return index
    if classes is None:
        return "not an integer, and no class names are known"
    found = classes.count(text)
    if found != 1:
        return "the name of several classes" if found else "neither an integer nor a class name"
    return classes.index(text)


def _refuse_labels(
    path: Path, rows: list[dict[str, str]], column: str, wrong: list[str | bool], class_count: int | None
) -> None:
    lines = [f"{row['file']}: {row[column]!r} is {why}" for row, why in zip(rows, wrong, strict=True) if why]
    span = "" if class_count is None else f" from 0 to {class_count - 1}"
    _refuse(path, lines, "has wrong labels", f"A label is a class index{span}, or a name of classes.txt.")


def _refuse(path: Path, found: list[str], what: str, todo: str) -> None:
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise VitedgeError(f"{path} {what}.", f"{len(found)} in all: {'; '.join(found[:5])}{more}.", todo)


_TODO = (
    "Write the header `file,label`, then one row an image: its path below the folder, and its class index."
)
