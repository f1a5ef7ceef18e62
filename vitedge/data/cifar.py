"""CIFAR-10 and CIFAR-100 as their authors pickled them, read without running what a pickle may call."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vitedge import documents
from vitedge.data.classes import natural_key
from vitedge.data.dataset import Dataset
from vitedge.data.formats import Parts, to_classes
from vitedge.errors import VitedgeError

# Folder as the archives and torchvision name it, beside any other that holds these files.
_FOLDERS = ("cifar-10-batches-py", "cifar-100-python")
_MOST = 2**28


def find(path: Path) -> Parts:
    """The training and test images of a CIFAR folder; none where it is none."""
    for folder in (path, *(path / name for name in _FOLDERS)):
        tens = sorted((p for p in folder.glob("data_batch_*") if p.is_file()), key=lambda p: natural_key(p.name))
        if tens and (folder / "batches.meta").is_file():
            parts: Parts = {"train": partial(_open, folder, tens, "batches.meta")}
            if (folder / "test_batch").is_file():
                parts["test"] = partial(_open, folder, [folder / "test_batch"], "batches.meta")
            return parts
        if all((folder / name).is_file() for name in ("train", "test", "meta")):
            return {p: partial(_open, folder, [folder / p], "meta") for p in ("train", "test")}  # type: ignore[misc]
    return {}


def _open(folder: Path, files: list[Path], meta: str, classes: Sequence[str] | None, count: int | None) -> Dataset:
    names = _values(folder / meta, "label_names", "fine_label_names")
    pixels, labels = [], []
    for file in files:
        data, found = _values(file, "data"), _values(file, "labels", "fine_labels")
        if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3072):
            raise _foreign(file, "its data are no bytes [N, 3072]")
        whole = isinstance(found, list) and all(type(v) is int and 0 <= v < len(names) for v in found)
        if not whole or len(found) != len(data):
            raise _foreign(file, "its labels are no indices, one an image")
        pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += found
    images = np.concatenate(pixels)
    files_of = tuple(
        f"{file.name}:{row:05}" for file, part in zip(files, pixels, strict=True) for row in range(len(part))
    )
    own = tuple(str(name) for name in names)
    dataset = Dataset(folder, files_of, np.array(labels, np.int64), own, _Array(images), np.arange(len(images)))
    return to_classes(dataset, classes, count)


class _Array:
    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __getitem__(self, row: int) -> np.ndarray:
        return np.ascontiguousarray(self.images[row])


def _values(path: Path, *keys: str) -> Any:
    """The first of these entries of the pickled dictionary in `path`. Raises VitedgeError."""
    try:
        found = Unpickler(io.BytesIO(documents.read_bytes(path, most=_MOST)), encoding="latin1").load()
    except VitedgeError:
        raise
    except Exception as error:  # a pickle is a program: it may fail in any way
        raise _foreign(path, documents.printable(error, 200) or type(error).__name__) from error
    value = next((found[key] for key in keys if key in found), None) if isinstance(found, dict) else None
    if value is None:
        raise _foreign(path, f"it has no entry '{keys[0]}'")
    return value


class Unpickler(pickle.Unpickler):
    """Reads numbers, text, lists, dictionaries and NumPy arrays; a pickle that names anything else is refused."""

    _ALLOWED = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # how Python 2's bytes are written
    }

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _empty
        if (module, name) in self._ALLOWED:
            return self._ALLOWED[module, name]
        raise VitedgeError(
            "The pickle wants to run code.",
            f"It names {documents.printable(f'{module}.{name}', 80)}; of CIFAR's files none does.",
            "Download the archive from its authors again.",
        )


def _empty(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """What NumPy's arrays are unpickled from; their shape comes with their data."""
    if kind is not np.ndarray or shape != (0,):
        raise ValueError("an array of another kind")
    return np.empty(0, np.uint8)


def _foreign(path: Path, why: str) -> VitedgeError:
    return VitedgeError(
        f"{path} is no batch of CIFAR.", f"{why[:1].upper()}{why[1:].rstrip('.')}.", "Extract it again."
    )
