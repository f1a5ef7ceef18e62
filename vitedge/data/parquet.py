"""Parquet as Hugging Face's `datasets` stores images: a file, or a folder with one or more files a part."""

from __future__ import annotations

import importlib
import re
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vitedge import documents
from vitedge.data.classes import some
from vitedge.data.dataset import Dataset
from vitedge.data.formats import PART_OF, Part, Parts, below, from_values, to_classes
from vitedge.errors import VitedgeError, missing_package

_IMAGE = ("image", "img", "picture", "photo", "jpg", "png")
_LABEL = ("label", "labels", "fine_label", "class", "target", "category")
_HELD = 2  # row groups in memory


def find(path: Path, image: str | None = None, label: str | None = None) -> Parts:
    """The parts of the Parquet files in `path`, by the words in their names; none where there are no such files."""
    found: dict[Part, list[Path]] = defaultdict(list)
    if path.suffix == ".parquet" and path.is_file():
        return {"all": partial(_open, path, [path], image, label)}
    for file in sorted(path.glob("*.parquet")) + sorted(path.glob("*/*.parquet")) if path.is_dir() else ():
        words = [word for word in re.split(r"[^a-z]+", f"{file.parent.name} {file.stem}".lower()) if word in PART_OF]
        found[PART_OF[words[-1]] if words else "all"].append(file)
    if len(found) > 1 and "all" in found:
        raise VitedgeError(
            f"{path} has Parquet files of which it is not clear what they are.",
            f"Some are parts (train, test, ...), others not: {some(f.name for f in found['all'])}.",
            "Name one file.",
        )
    return {part: partial(_open, path, files, image, label) for part, files in found.items()}


def _open(
    root: Path,
    files: list[Path],
    image: str | None,
    label: str | None,
    classes: Sequence[str] | None,
    count: int | None,
) -> Dataset:
    table = _Table(root, files)
    image = _choose(table, image, _is_image, _IMAGE, "image")
    label = _choose(table, label, _is_label, _LABEL, "label")
    if image is None:
        columns = ", ".join(f"{name} ({kind})" for name, kind in table.kinds.items())
        raise VitedgeError(
            f"{root} has no column of images.", f"Its columns: {columns:.300}.", "Name one: --image-column NAME."
        )
    contents = _Images(table, image)
    names = tuple(f"{file.name}:{row:06}" for file, n in zip(files, table.counts, strict=True) for row in range(n))
    if not names:
        raise VitedgeError(f"{root} has no rows.", "", "Give a data set with images.")
    dataset = Dataset(root, names, contents=contents, rows=np.arange(len(names)))
    if label is None:
        return replace(dataset, classes=None if classes is None else tuple(classes))
    return labelled(dataset, table.column(label), table.features.get(label), classes, count)


def labelled(
    dataset: Dataset, values: list[Any], feature: Any, classes: Sequence[str] | None, count: int | None
) -> Dataset:
    """The data set with labels of a column: `feature` is what Hugging Face's metadata says of it."""
    several = isinstance(values[0], list)
    inner = feature.get("feature", feature) if isinstance(feature, dict) else None
    inner = inner[0] if isinstance(inner, list) and inner else inner
    names = inner.get("names") if isinstance(inner, dict) else None
    own = tuple(map(str, names)) if isinstance(names, list) else None
    known = len(own) if own else count
    flat = [v for value in values for v in value] if several else values
    if all(value in (-1, None) for value in flat) and not several:
        return replace(dataset, classes=own)  # how Hugging Face marks a part without labels
    if several and known is None:
        raise VitedgeError(
            f"{dataset.root} has several labels an image, and the number of classes is not known.",
            "",
            "Give the names of the classes: --classes FILE.",
        )
    single = from_values(dataset, flat, own if own is not None else classes, known) if flat else dataset
    if several:
        assert known is not None
        hot = np.zeros((len(values), known), np.uint8)
        at = np.repeat(np.arange(len(values)), [len(value) for value in values])
        hot[at, single.labels if flat else []] = 1
        single = replace(single, labels=hot)
    return to_classes(single, classes, count) if own else single


class _Table:
    """The rows of some Parquet files of one schema."""

    def __init__(self, root: Path, files: list[Path]) -> None:
        self.parquet = _pyarrow()
        self.root, self.files = root, files
        try:
            self.opened = [self.parquet.ParquetFile(file, memory_map=True) for file in files]
            self.counts = [file.metadata.num_rows for file in self.opened]
            self.schema = self.opened[0].schema_arrow
            if other := [
                f for f, o in zip(files, self.opened, strict=True) if o.schema_arrow.names != self.schema.names
            ]:
                raise ValueError(f"{other[0].name} has other columns than {files[0].name}")
        except (OSError, ValueError) as error:
            raise _broken(root, error) from error
        self.kinds = {field.name: str(field.type) for field in self.schema}
        info: Any = {}
        if text := (self.schema.metadata or {}).get(b"huggingface"):
            info = documents.parse_json(text, root)
        features = info.get("info", {}).get("features") if isinstance(info, dict) else None
        self.features: dict[str, Any] = features if isinstance(features, dict) else {}
        self.starts = [
            (number, group, self.opened[number].metadata.row_group(group).num_rows)
            for number in range(len(files))
            for group in range(self.opened[number].metadata.num_row_groups)
        ]
        self.ends = np.cumsum([rows for _, _, rows in self.starts])

    def column(self, name: str) -> list[Any]:
        """All values of a column."""
        try:
            return [v for file in self.opened for v in file.read(columns=[name]).column(name).to_pylist()]
        except (OSError, ValueError) as error:
            raise _broken(self.root, error) from error


class _Images:
    """The encoded images of a column; the row groups read last stay in memory."""

    def __init__(self, table: _Table, column: str) -> None:
        self.table, self.column = table, column
        self.held: dict[int, Any] = {}
        self.lock = threading.Lock()

    def __getitem__(self, row: int) -> bytes:
        table = self.table
        at = int(np.searchsorted(table.ends, row, side="right"))
        number, group, rows = table.starts[at]
        with self.lock:  # one thread reads a row group, the others wait for it
            if at not in self.held:
                while len(self.held) >= _HELD:
                    self.held.pop(next(iter(self.held)))
                read = table.opened[number].read_row_group(group, columns=[self.column])
                self.held[at] = read.column(self.column)
            cell = self.held[at][row - (int(table.ends[at]) - rows)].as_py()
        return encoded(cell, table.files[number].parent)


def encoded(cell: Any, folder: Path) -> bytes:
    """The encoded image of a cell: bytes, or {bytes, path}. Raises ValueError where it holds none."""
    if isinstance(cell, dict):
        if cell.get("bytes") is None and (file := below(folder, str(cell.get("path") or ""))):
            return file.read_bytes()
        cell = cell.get("bytes")
    if not isinstance(cell, bytes):
        raise ValueError("the row holds no image")
    return cell


def _choose(table: _Table, wanted: str | None, fits: Any, usual: tuple[str, ...], what: str) -> str | None:
    """The column that is asked for, or the one of that kind. Raises VitedgeError where it is missing or unclear."""
    if wanted is not None:
        if wanted not in table.kinds:
            raise VitedgeError(
                f"{table.root} has no column '{documents.printable(wanted)}'.",
                f"Its columns: {', '.join(table.kinds)}.",
                f"Correct --{what}-column.",
            )
        return wanted
    fitting = [name for name in table.kinds if fits(table, name)]
    typed = [name for name in fitting if isinstance(table.features.get(name), dict)] or fitting
    named = [name for name in usual if name in fitting]
    if len(typed) > 1 and not named:
        raise VitedgeError(
            f"{table.root} has several {what} columns.", f"They are {', '.join(typed)}.", f"Name one: --{what}-column."
        )
    return named[0] if named else typed[0] if typed else None


def _is_image(table: _Table, name: str) -> bool:
    feature, kind = table.features.get(name), table.kinds[name]
    if isinstance(feature, dict) and feature.get("_type") == "Image":
        return True
    return kind.startswith("struct<bytes: binary") or (kind in ("binary", "large_binary") and name.lower() in _IMAGE)


def _is_label(table: _Table, name: str) -> bool:
    feature, kind = table.features.get(name), table.kinds[name]
    if "ClassLabel" in repr(feature):
        return True
    return name.lower() in _LABEL and not kind.startswith(("struct", "binary", "large_binary"))


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise missing_package("pyarrow", "data", "Reading Parquet") from error


def _broken(root: Path, error: Exception) -> VitedgeError:
    text = documents.printable(str(error).splitlines()[0] if str(error) else type(error).__name__)
    return VitedgeError(f"{root} can't be read as Parquet.", f"{text.rstrip('.')}.", "Download or write it again.")
