"""Flowers-102 as its authors and torchvision lay it out: jpg/, imagelabels.mat, setid.mat."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vitedge import documents
from vitedge.data.dataset import Dataset
from vitedge.data.formats import Part, Parts, from_values
from vitedge.errors import VitedgeError, missing_package

_SPLITS: dict[Part, str] = {"train": "trnid", "val": "valid", "test": "tstid"}


def find(path: Path) -> Parts:
    """The three parts; none where `path` is no such folder."""
    for folder in (path, path / "flowers-102"):
        if (folder / "imagelabels.mat").is_file() and (folder / "setid.mat").is_file():
            return {part: partial(_open, folder, key) for part, key in _SPLITS.items()}
    return {}


def _open(folder: Path, key: str, classes: Sequence[str] | None, count: int | None) -> Dataset:
    numbers = _vector(folder / "setid.mat", key)
    labels = _vector(folder / "imagelabels.mat", "labels")
    if numbers.min(initial=1) < 1 or numbers.max(initial=1) > len(labels):
        raise VitedgeError(f"{folder} is no Flowers-102.", "Its set ids lie beyond its labels.", "Extract it again.")
    files = tuple(f"jpg/image_{number:05}.jpg" for number in numbers.tolist())
    return from_values(Dataset(folder, files), [int(v) - 1 for v in labels[numbers - 1]], classes, count or 102)


def _vector(path: Path, key: str) -> np.ndarray:
    try:
        scipy = importlib.import_module("scipy.io")
    except ImportError as error:
        raise missing_package("scipy", "data", f"Reading {path.name}") from error
    documents.read_bytes(path, most=2**20)
    try:
        return scipy.loadmat(str(path), variable_names=[key])[key].reshape(-1).astype(np.int64)
    except Exception as error:
        why = documents.printable(error, 200).rstrip(".")
        raise VitedgeError(f"{path} can't be read.", f"{why}.", "Download it again.") from error
