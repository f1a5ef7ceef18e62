"""Runs an artifact over the images, records what it said, and goes on where an interrupted run stopped."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vitedge import documents
from vitedge.bench import records
from vitedge.bench.process import ArtifactFailed, ArtifactProcess
from vitedge.bench.source import Source
from vitedge.errors import VitedgeError
from vitedge.files import write_json
from vitedge.metrics import Activation

Reference = Callable[[np.ndarray], "np.ndarray | None"]

_BATCH = 64
_COMMAND_S = 2.0  # how long one command to the process should take, so that progress is seen and recorded


@dataclass(frozen=True)
class RecordState:
    """What the files of a `RecordFile` hold: `count` records, of models with `classes` logits, and their digests."""

    count: int = 0
    classes: int = 0
    records_sha256: str = ""
    logits_sha256: str = ""


class RecordFile:
    """The records of one artifact on disk, with its logits where they are wanted (reference, several labels).

    A state file beside them is written whole after each batch: what is longer than it says was cut off by a kill and is
    cut off here, what differs from its digests is not what was measured and is measured again.
    """

    def __init__(self, path: Path, *, with_logits: bool) -> None:
        self.path = path
        self.logits_path = path.with_suffix(".f32") if with_logits else None
        self.state_path = path.with_suffix(".json")
        self.state = RecordState()
        self._digests = (hashlib.sha256(), hashlib.sha256())
        self.found = self._read()

    def _read(self) -> np.ndarray:
        """The records that are whole and unchanged; nothing is written."""
        try:
            state = documents.load(self.state_path, RecordState)
            data = _head(self.path, state.count * records.RECORD.itemsize)
            held = _head(self.logits_path, 4 * state.count * state.classes) if self.logits_path else b""
        except (VitedgeError, OSError, OverflowError):
            return np.zeros(0, records.RECORD)
        digests = (hashlib.sha256(data), hashlib.sha256(held))
        if digests[0].hexdigest() != state.records_sha256:
            return np.zeros(0, records.RECORD)
        if self.logits_path and digests[1].hexdigest() != state.logits_sha256:
            return np.zeros(0, records.RECORD)
        self.state, self._digests = state, digests
        return np.frombuffer(data, records.RECORD)

    def append(self, made: np.ndarray, logits: np.ndarray) -> None:
        """Adds a batch: records [n], logits [n, classes]."""
        data, held = np.ascontiguousarray(made, records.RECORD).tobytes(), b""
        count, classes = self.state.count, logits.shape[1]
        _extend(self.path, count * records.RECORD.itemsize, data)
        if self.logits_path:
            held = np.ascontiguousarray(logits, np.float32).tobytes()
            _extend(self.logits_path, 4 * count * classes, held)
        for digest, more in zip(self._digests, (data, held), strict=True):
            digest.update(more)
        of_records, of_logits = (one.hexdigest() for one in self._digests)
        self.state = RecordState(count + len(made), classes, of_records, of_logits if self.logits_path else "")
        write_json(self.state_path, asdict(self.state))
        self.found = np.concatenate([self.found, np.asarray(made, records.RECORD)])

    def logits(self, first: int, last: int) -> np.ndarray:
        """The logits of the records first..last (exclusive), float32 [n, classes]."""
        width = self.state.classes
        assert self.logits_path is not None and width
        flat = np.fromfile(self.logits_path, np.float32, (last - first) * width, offset=4 * width * first)
        return flat.reshape(-1, width)


def _head(path: Path, size: int) -> bytes:
    if not 0 <= size <= path.stat().st_size:
        raise OSError("shorter than its state says")
    with path.open("rb") as file:
        return file.read(size)


def _extend(path: Path, at: int, data: bytes) -> None:
    """Writes `data` at the byte `at`, the end of the file from then on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.seek(at)
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def recorded_reference(file: RecordFile) -> Reference:
    """The reference's logits by the images' positions, None for a batch of which one is missing."""
    index = file.found["index"]

    def lookup(positions: np.ndarray) -> np.ndarray | None:
        lines = np.searchsorted(index, positions)
        if lines.size == 0 or lines[-1] >= index.size or not np.array_equal(index[lines], positions):
            return None
        first, last = int(lines[0]), int(lines[-1]) + 1
        return file.logits(first, last)[lines - first]

    return lookup


def evaluate(
    process: ArtifactProcess,
    source: Source,
    file: RecordFile,
    reference: Reference | None,
    advance: Callable[[int], None],
    activation: Activation = "softmax",
) -> np.ndarray:
    """All records of the artifact over the source, [n]; those that are on disk already are not made again.

    Raises:
        ArtifactFailed: the process failed; what it did so far stays on disk.
    """
    done = file.found
    start = int(done["index"][-1]) + 1 if done.size else 0
    advance(start)
    multi_label = source.labels is not None and source.labels.ndim == 2
    # Embeddings have no classes that a label could name.
    labels = None if multi_label or activation == "none" else source.labels
    classes: int | None = None
    for positions, pixels in source.batches(start, _BATCH):
        for part, logits in _answers(process, pixels):
            at, logits = positions[part], logits.reshape(len(logits), -1)
            classes = classes or max(2, logits.shape[1])  # a single logit says yes or no
            if labels is not None and int(labels[at].max(initial=-1)) >= classes:
                top = int(labels.max())
                raise ArtifactFailed(f"the data set's labels go up to {top}, but the model has {classes} classes")
            expected = reference(at) if reference else None
            if expected is not None and expected.shape != logits.shape:
                raise ArtifactFailed(f"it gives {logits.shape[1]} classes, the reference {expected.shape[1]}")
            made = records.make(at, logits, None if labels is None else labels[at], expected, activation)
            file.append(made, logits)
            advance(len(at))
    return file.found


def _answers(process: ArtifactProcess, pixels: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The batch in commands of about two seconds: a simulator gets a few images at a time."""
    rate = process.images_per_s
    start = 0
    while start < len(pixels):
        size = int(min(max(1, rate * _COMMAND_S), _BATCH))
        part = slice(start, start + size)
        begin = time.monotonic()
        logits = process.infer(pixels[part])
        rate = len(logits) / max(time.monotonic() - begin, 1e-3)
        process.images_per_s = rate
        start += size
        yield part, logits
