"""Where the images of a run come from: a data set of files, or a pack's ready tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from vitedge.bench.schema import Data
from vitedge.data.dataset import Dataset
from vitedge.data.loader import iter_batches
from vitedge.data.preprocess import Preprocess
from vitedge.documents import printable


class Source(Protocol):
    """Images in a fixed order. `labels` are int64 [n], uint8 [n, classes] (multi-label), or None."""

    labels: np.ndarray | None
    names: list[str] | None

    def __len__(self) -> int: ...

    def batches(self, start: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions int64 [n] and pixels uint8 [n, H, W, 3], from the position `start` on, in order."""
        ...

    def reference(self, positions: np.ndarray) -> np.ndarray | None:
        """FP32 logits that came with the images, float32 [n, classes], or None."""
        ...

    def files(self, count: int) -> list[Path]:
        """Some of the image files, for timing the way from a file; empty where there are none."""
        ...

    def facts(self) -> Data:
        """The bench JSON's `data`."""
        ...


class DatasetSource:
    """A data set that is decoded while it is read, with bounded memory; unreadable images are left out."""

    def __init__(self, dataset: Dataset, preprocess: Preprocess, known: Data | None = None) -> None:
        self.dataset, self.preprocess = dataset, preprocess
        self.labels = dataset.labels
        self.names = None if dataset.classes is None else list(dataset.classes)
        self.skipped: dict[str, str] = {}
        self._known = known or Data()

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, start: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rest = self.dataset.subset(np.arange(start, len(self))) if start else self.dataset
        if len(rest) == 0:
            return
        loaded = iter_batches(rest, self.preprocess, size)
        for pixels, indices in loaded:
            yield indices + start, pixels
        self.skipped |= dict(loaded.skipped)

    def reference(self, positions: np.ndarray) -> np.ndarray | None:
        return None

    def files(self, count: int) -> list[Path]:
        found = [] if self.dataset.contents is not None else range(min(count, len(self)))
        return [self.dataset.path(index) for index in found]

    def facts(self) -> Data:
        skipped = tuple(printable(f"{file}: {reason}") for file, reason in self.skipped.items())
        path, digest = printable(self.dataset.origin or self.dataset.root, 4096), self.dataset.sha256()
        return replace(self._known, path=path, n=len(self), sha256=digest, skipped=skipped)


class NoiseSource:
    """Random pixels where there is no data set: good for latency, useless for accuracy."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        """shape: height, width and channels."""
        self.labels: np.ndarray | None = None
        self.names: list[str] | None = None
        self.pixels = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)

    def __len__(self) -> int:
        return 0

    def batches(self, start: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield np.arange(len(self.pixels))[start:], self.pixels[start:]

    def reference(self, positions: np.ndarray) -> np.ndarray | None:
        return None

    def files(self, count: int) -> list[Path]:
        return []

    def facts(self) -> Data:
        return Data()


def first_images(source: Source, count: int) -> np.ndarray:
    """Pixels uint8 [n, H, W, 3] of the first images, n <= count."""
    for _, pixels in source.batches(0, count):
        return pixels[:count]
    raise ValueError("the data set has no readable image")
