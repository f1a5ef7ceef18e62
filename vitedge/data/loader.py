"""Files to batches of pixels: decoded in threads, in order, with bounded memory."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from vitedge.data.dataset import Dataset
from vitedge.data.image import UnreadableImage
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.processors import usable_processors

log = logging.getLogger(__name__)

UNREADABLE_SHARE = 0.01


class Batches:
    """The batches of a data set, once through for each `iter`.

    Attributes:
        unreadable: the unreadable images met so far in the newest pass: index in the data set -> reason.
    """

    def __init__(
        self, dataset: Dataset, preprocess: Preprocess, batch_size: int, threads: int, most_unreadable: float
    ) -> None:
        self.dataset, self.preprocess = dataset, preprocess
        self.batch_size, self.threads, self.most_unreadable = batch_size, threads, most_unreadable
        self.unreadable: dict[int, str] = {}
        if preprocess.bands != 3:
            raise VitedgeError(
                f"The model takes {preprocess.bands} channels, and image files have three.",
                f"Nothing says which of its channels the pixels of {dataset.root} are.",
                "Compress it without --calib, and give an artifact its pixels, uint8 [N, height, width, channels], "
                "through its runner; accuracy on images can't be measured.",
            )

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """The unreadable images as (file, reason)."""
        return [(self.dataset.files[index], reason) for index, reason in self.unreadable.items()]

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields pixels uint8 [n, crop, crop, 3] and their indices in the data set, int64 [n]."""
        self.unreadable = {}
        pixels: list[np.ndarray] = []
        indices: list[int] = []
        for index, image in self._images():
            if isinstance(image, UnreadableImage):
                self._skip(index, image)
                continue
            pixels.append(image)
            indices.append(index)
            if len(pixels) == self.batch_size:
                yield np.stack(pixels), np.array(indices, np.int64)
                pixels, indices = [], []
        if pixels:
            yield np.stack(pixels), np.array(indices, np.int64)
        if self.skipped:
            log.warning("%s", self.warning())

    def warning(self) -> str:
        """What was skipped, in words; empty where nothing was."""
        if not self.skipped:
            return ""
        named = "; ".join(f"{file}: {reason}" for file, reason in self.skipped[:5])
        more = f" and {len(self.skipped) - 5} more" if len(self.skipped) > 5 else ""
        count = f"{len(self.skipped)} of {len(self.dataset)}"
        return f"{count} images are unreadable and were skipped: {named}{more}"

    def _images(self) -> Iterator[tuple[int, np.ndarray | UnreadableImage]]:
        """Every image in order; only the threads hold images of full size."""
        waiting: deque[tuple[int, Future[np.ndarray | UnreadableImage]]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        try:
            for index in range(len(self.dataset)):
                waiting.append((index, pool.submit(self._decode, index)))
                if len(waiting) >= self.batch_size + 2 * self.threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _decode(self, index: int) -> np.ndarray | UnreadableImage:
        try:
            return self.preprocess.apply(self.dataset.open(index, **self.preprocess.reading))
        except UnreadableImage as error:
            return error
        except ValueError as error:
            return UnreadableImage(self.dataset.path(index), str(error))

    def _skip(self, index: int, error: UnreadableImage) -> None:
        self.unreadable[index] = error.reason
        if len(self.unreadable) > self.most_unreadable * len(self.dataset):
            raise VitedgeError(
                f"Too many images of {self.dataset.root} are unreadable.",
                f"Over {self.most_unreadable:.0%} are an error. {self.warning()}.",
                "Fix or remove these files.",
            )


def iter_batches(
    dataset: Dataset,
    preprocess: Preprocess,
    batch_size: int = 32,
    threads: int | None = None,
    most_unreadable: float = UNREADABLE_SHARE,
) -> Batches:
    """Batches of pixels, in the order of the data set.

        batches = iter_batches(dataset, preprocess, 32)
        for pixels, indices in batches: ...   # uint8 [n, crop, crop, 3], int64 [n]
        print(batches.skipped)

    Every batch but the last is full. Unreadable images are skipped and listed. At most `batch_size` and two
    images a thread wait decoded, beside the batch that is handed out.

    Raises:
        VitedgeError: more than `most_unreadable` of the set is unreadable (as soon as that is known).
    """
    if batch_size < 1:
        raise VitedgeError(f"The batch size is {batch_size}.", "", "Pass 1 or more.")
    return Batches(dataset, preprocess, batch_size, threads or default_threads(), most_unreadable)


def default_threads() -> int:
    """As many as this process has processors, 8 at most: beyond that the disk is the limit."""
    return min(usable_processors(), 8)
