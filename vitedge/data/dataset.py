"""A set of image files, with labels where it has them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vitedge.data.image import UnreadableImage, decode, open_rgb
from vitedge.errors import VitedgeError

_HASHED_WHOLE = 2**28  # bytes of images up to which every byte enters the identity
_HASHED_HEAD = 4096  # bytes of each file that enter the identity of a larger set


class Contents(Protocol):
    """Images that are no files: rows of a table, or arrays.

    Where it has a `key`, that and a row tell what the image is, without reading it.
    """

    def __getitem__(self, row: int, /) -> bytes | np.ndarray:
        """The encoded image in that row, or its pixels uint8 [H, W, 3]. Raises ValueError where there is none."""
        ...


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images in a fixed order.

    Attributes:
        root: the folder, or the file that holds all.
        files: paths below it, with forward slashes; of images that are no files: names for them.
        labels: class indices from 0, int64 [N]; for multi-label sets 0 or 1, uint8 [N, classes]; None where
            the set has none.
        classes: the names that the labels index, or None where they are not known.
        contents, rows: where images that are no files are, and the row of each in it.
        origin: what opens the set again, where that is not `root`.
    """

    root: Path
    files: tuple[str, ...]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    contents: Contents | None = None
    rows: np.ndarray | None = None
    origin: str = ""

    def __len__(self) -> int:
        return len(self.files)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.labels is not None and self.labels.ndim == 2

    def path(self, index: int) -> Path:
        return self.root / self.files[index]

    def open(self, index: int, **how: Any) -> Image.Image:
        """The image, RGB. `how`: as `image.open_rgb` takes it. Raises UnreadableImage."""
        if self.contents is None:
            return open_rgb(self.path(index), **how)
        try:
            found = self._content(index)
        except (OSError, ValueError) as error:
            raise UnreadableImage(self.files[index], str(error)) from error
        if isinstance(found, np.ndarray):
            return Image.fromarray(found)
        return decode(io.BytesIO(found), self.files[index], **how)

    def _content(self, index: int) -> bytes | np.ndarray:
        if self.contents is None:
            return self.path(index).read_bytes()
        return self.contents[index if self.rows is None else int(self.rows[index])]

    def subset(self, indices: Sequence[int] | np.ndarray) -> Dataset:
        """The images at `indices`, in that order."""
        chosen = np.asarray(indices, np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        rows = None if self.contents is None else (chosen if self.rows is None else self.rows[chosen])
        return replace(self, files=tuple(self.files[index] for index in chosen), labels=labels, rows=rows)

    def require_labels(self, purpose: str, classes: int) -> np.ndarray:
        """The labels, known to fit a model of `classes` outputs.

        Args:
            purpose: what they are needed for, as the subject of a sentence: "Accuracy".
            classes: the number of outputs of the model.

        Raises:
            VitedgeError: the set has no labels, or labels that the model can't give.
        """
        if self.labels is None:
            raise VitedgeError(
                f"{purpose} needs labels, and {self.root} has none.",
                "It holds images alone.",
                "Add a labels.csv (`file,label`), or sort the images into one sub-folder a class.",
            )
        top = self.labels.shape[1] - 1 if self.multi_label else int(self.labels.max(initial=-1))
        if top >= classes or (self.multi_label and top != classes - 1):
            raise VitedgeError(
                f"The labels of {self.root} do not fit the model.",
                f"The model has {classes} classes, the labels go up to {top} (counted from 0).",
                "Check that this data set belongs to this model.",
            )
        return self.labels

    def sha256(self) -> str:
        """The identity of the content: the same on every machine that has the same files and labels.

        Made of every file's name, size, label and bytes. Of a set over 256 MiB only the first 4096 bytes of
        each file are read. Neither the root, nor times, nor class names enter.
        """
        return self._identity

    @cached_property
    def _identity(self) -> str:
        if key := getattr(self.contents, "key", None):
            return hashlib.sha256(repr((key, self.files)).encode()).hexdigest()
        try:
            whole = self.contents is not None or self._bytes() <= _HASHED_WHOLE
            digest = hashlib.sha256(b"whole" if whole else b"heads")
            for index, file in enumerate(self.files):
                label = None if self.labels is None else self.labels[index].tolist()
                size, content = self._digest(index, None if whole else _HASHED_HEAD)
                digest.update(repr((file, size, label, content)).encode())
        except OSError as error:
            raise VitedgeError(
                f"{error.filename} could not be read.",
                f"{error.strerror}.",
                "Was the data set changed meanwhile?",
            ) from error
        return digest.hexdigest()

    def _bytes(self) -> int:
        return sum(self.path(index).stat().st_size for index in range(len(self)))

    def _digest(self, index: int, most: int | None) -> tuple[int, str]:
        """Size in bytes of an image, and the SHA-256 of its first `most` bytes."""
        if self.contents is None:
            with self.path(index).open("rb") as opened:
                return self.path(index).stat().st_size, hashlib.sha256(
                    opened.read(-1 if most is None else most)
                ).hexdigest()
        try:
            found = self._content(index)
        except ValueError:
            found = b""
        content = found.tobytes() if isinstance(found, np.ndarray) else found
        return len(content), hashlib.sha256(content).hexdigest()
