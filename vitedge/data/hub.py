"""Data sets of the Hugging Face Hub, through its library `datasets`: hf:NAME, hf:NAME:PART."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vitedge import documents
from vitedge.data.dataset import Dataset
from vitedge.data.formats import PART_OF, Parts
from vitedge.data.parquet import encoded, labelled
from vitedge.errors import VitedgeError, missing_package

PREFIX = "hf:"


def find(text: str, image: str | None = None, label: str | None = None) -> Parts:
    """The parts of the data set that `text` names; none where it names none. Raises VitedgeError."""
    if not text.startswith(PREFIX):
        return {}
    name, _, part = text.removeprefix(PREFIX).partition(":")
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise missing_package("datasets", "data", f"The data set '{documents.printable(text)}' of the Hub") from error
    try:
        splits = [part] if part else datasets.get_dataset_split_names(name)
        opened = {split: datasets.load_dataset(name, split=split) for split in splits}
    except Exception as error:  # of the network, of the Hub, of the data set's files: each library has its own
        words = (str(error) or type(error).__name__).splitlines()[0]
        raise VitedgeError(
            f"The data set '{documents.printable(name)}' can't be had from the Hub.",
            f"{documents.printable(words, 200).rstrip('.')}.",
            "Check its name and the network, or download its Parquet files and give their folder.",
            exit_code=1,
        ) from error
    return {
        PART_OF.get(split.partition("[")[0].lower(), "all"): partial(_open, text, rows, image, label)
        for split, rows in opened.items()
    }


def _open(text: str, rows: Any, image: str | None, label: str | None, classes: Any, count: int | None) -> Dataset:
    datasets = importlib.import_module("datasets")
    kinds = {name: type(feature).__name__ for name, feature in rows.features.items()}
    image = image or next((name for name, kind in kinds.items() if kind == "Image"), None)
    label = label or next((name for name, feature in rows.features.items() if "ClassLabel" in repr(feature)), None)
    for what, column in (("image", image), ("label", label)):
        if (column is None and what == "image") or (column is not None and column not in kinds):
            raise VitedgeError(
                f"{text} has no {what} column.",
                f"Its columns: {', '.join(f'{name} ({kind})' for name, kind in kinds.items())}.",
                f"Name one: --{what}-column NAME.",
            )
    contents = _Rows(rows.cast_column(image, datasets.Image(decode=False)), str(image))
    names = tuple(f"{row:06}" for row in range(len(rows)))
    dataset = Dataset(Path(text), names, contents=contents, rows=np.arange(len(names)), origin=text)
    if label is None:
        return dataset
    return labelled(dataset, list(rows[label]), rows.features.to_dict().get(label), classes, count)


class _Rows:
    def __init__(self, rows: Any, column: str) -> None:
        self.rows, self.column = rows, column

    def __getitem__(self, row: int) -> bytes:
        return encoded(self.rows[row][self.column], Path("."))
