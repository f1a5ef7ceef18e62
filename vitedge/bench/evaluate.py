"""Runs a row over the images, keeps its records, and goes on where an interrupted run stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vitedge.bench import records
from vitedge.bench.row import Row, RowFailed
from vitedge.bench.source import Source

Reference = Callable[[np.ndarray], "np.ndarray | None"]

_BATCH = 64
_COMMAND_S = 2.0  # how long one command to the row should take, so that progress is seen and kept


class Kept:
    """The records of one row on disk, with its logits where they are wanted (reference, multi-label)."""

    def __init__(self, path: Path, *, with_logits: bool) -> None:
        self.path = path
        self.logits_path = path.with_suffix(".f32") if with_logits else None
        path.parent.mkdir(parents=True, exist_ok=True)

    def load(self) -> np.ndarray:
        """The records so far, cut to the lines that have their logits too."""
        found = records.load(self.path)
        if self.logits_path is None or found.size == 0:
            return found
        width = self._width()
        held = self.logits_path.stat().st_size // (4 * width) if width and self.logits_path.exists() else 0
        if held < found.size:
            found = found[:held]
            self.path.write_bytes(found.tobytes())
        elif width and self.logits_path.stat().st_size != 4 * width * found.size:
            with self.logits_path.open("r+b") as file:
                file.truncate(4 * width * found.size)
        return found

    def append(self, made: np.ndarray, logits: np.ndarray) -> None:
        """Adds a batch. The logits go first: a kill in between leaves more of them than records, never
        less."""
        if self.logits_path is not None:
            self._width_path().write_text(str(logits.shape[1]))
            with self.logits_path.open("ab") as file:
                file.write(np.ascontiguousarray(logits, np.float32).tobytes())
                file.flush()
        records.append(self.path, made)

    def logits(self, first: int, last: int) -> np.ndarray:
        """The logits of the records first..last (exclusive), float32 [n, classes]."""
        width = self._width()
        assert self.logits_path is not None and width
        flat = np.fromfile(self.logits_path, np.float32, (last - first) * width, offset=4 * width * first)
        return flat.reshape(-1, width)

    def _width_path(self) -> Path:
        return self.path.with_suffix(".classes")

    def _width(self) -> int:
        path = self._width_path()
        return int(path.read_text()) if path.exists() else 0


def kept_reference(kept: Kept) -> Reference:
    """The reference's logits by the images' positions, None for a batch of which one is missing."""
    index = kept.load()["index"]

    def lookup(positions: np.ndarray) -> np.ndarray | None:
        lines = np.searchsorted(index, positions)
        if lines.size == 0 or lines[-1] >= index.size or not np.array_equal(index[lines], positions):
            return None
        first, last = int(lines[0]), int(lines[-1]) + 1
        return kept.logits(first, last)[lines - first]

    return lookup


def evaluate(
    row: Row, source: Source, kept: Kept, reference: Reference | None, advance: Callable[[int], None]
) -> np.ndarray:
    """All records of the row over the source, [n]; those that are on disk already are not made again.

    Raises:
        RowFailed: the row's process failed; what it did so far stays on disk.
    """
    done = kept.load()
    start = int(done["index"][-1]) + 1 if done.size else 0
    advance(start)
    multi_label = source.labels is not None and source.labels.ndim == 2
    labels = None if multi_label else source.labels
    classes: int | None = None
    for positions, pixels in source.batches(start, _BATCH):
        for part, logits in _answers(row, pixels):
            at = positions[part]
            classes = classes or logits.shape[1]
            if labels is not None and int(labels[at].max(initial=-1)) >= classes:
                top = int(labels.max())
                raise RowFailed(f"the data set's labels go up to {top}, but the model has {classes} classes")
            expected = reference(at) if reference else None
            if expected is not None and expected.shape != logits.shape:
                raise RowFailed(f"it gives {classes} classes, the reference {expected.shape[1]}")
            kept.append(records.make(at, logits, None if labels is None else labels[at], expected), logits)
            advance(len(at))
    return kept.load()


def _answers(row: Row, pixels: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The batch in commands of about two seconds: a simulator gets a few images at a time."""
    rate = row.images_per_s
    start = 0
    while start < len(pixels):
        size = int(min(max(1, rate * _COMMAND_S), _BATCH))
        part = slice(start, start + size)
        begin = time.monotonic()
        logits = row.infer(pixels[part])
        rate = len(logits) / max(time.monotonic() - begin, 1e-3)
        row.images_per_s = rate
        start += size
        yield part, logits
