"""Parts of a data set: for `--limit`, and for calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitedge.data.dataset import Dataset
from vitedge.data.loader import iter_batches
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.files import atomic_path


def sample(dataset: Dataset, n: int | None, seed: int = 0) -> Dataset:
    """`n` images drawn by `seed`, in the order of the set; all of them where `n` is None or not smaller.

    With one label an image, every class gets its share, to within one image. A larger `n` of the same seed
    holds the images of a smaller one.
    """
    if n is not None and n < 1:
        raise VitedgeError(f"A sample of {n} images was asked for.", "", "Ask for 1 or more.")
    if n is None or n >= len(dataset):
        return dataset
    rng = np.random.default_rng(seed)
    rank = rng.permutation(len(dataset)).astype(np.float64)
    if dataset.labels is not None and not dataset.multi_label:
        # The k-th of a class of m images stands at (k + u) / m: cut anywhere, each class has its share.
        for label in np.unique(dataset.labels):
            members = np.flatnonzero(dataset.labels == label)
            rank[members] = (rng.permutation(len(members)) + rng.random()) / len(members)
    return dataset.subset(np.sort(np.argsort(rank, kind="stable")[:n]))


def held_out(count: int, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(places held out, the other places) of `count` images: at most `most` and a quarter of them, by the seed.

    Steps that learn from the same images hold out the same ones, so that none has seen what the next is judged on.
    """
    order = np.random.default_rng(seed).permutation(count)
    kept = min(most, count // 4)
    return order[:kept], order[kept:]


def load_pixels(
    dataset: Dataset,
    preprocess: Preprocess,
    n: int | None,
    seed: int,
    out: str | Path,
    batch_size: int = 32,
    threads: int | None = None,
) -> tuple[np.ndarray, Dataset]:
    """A sample's pixels, written to the file `out` (.npy) atomically, with never more than a batch in memory.

    Returns:
        The pixels, uint8 [n, H, W, channels], a read-only memory map of `out`; and the images they are of,
        in the same order. Unreadable images miss from both.

    Raises:
        VitedgeError: over 1 % are unreadable; the disk is full.
    """
    chosen = sample(dataset, n, seed)
    shape = *preprocess.size, preprocess.bands
    used: list[int] = []
    with atomic_path(out) as temporary, temporary.open("wb") as file:
        # Written through a file, not a memory map: on a full disk that raises, where a map kills the process.
        _write_header(file, (len(chosen), *shape))
        start = file.tell()
        for pixels, indices in iter_batches(chosen, preprocess, batch_size, threads):
            file.write(pixels.tobytes())
            used += indices.tolist()
        file.seek(0)
        _write_header(file, (len(used), *shape))
        assert file.tell() == start, "numpy reserves room for the first dimension"
        file.flush()
    return np.load(out, mmap_mode="r"), chosen.subset(used)


def _write_header(file, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
