"""Batches of any size through an artifact with a fixed one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def in_pieces(run: Callable[[np.ndarray], np.ndarray], batch: int | None, pixels: np.ndarray) -> np.ndarray:
    """run(pixels) for `pixels` [N, H, W, C], in pieces of `batch`; a short last one is padded. None: any size."""
    if batch is None or len(pixels) == batch:
        return run(pixels)
    return all_in_pieces(lambda piece: [run(piece)], batch, pixels)[0]


def all_in_pieces(
    run: Callable[[np.ndarray], Sequence[np.ndarray]], batch: int | None, pixels: np.ndarray
) -> list[np.ndarray]:
    """The same for a `run` of several results, [n, ...] each."""
    parts: list[list[np.ndarray]] = []
    for start in range(0, len(pixels), batch or len(pixels)):
        piece = pixels[start : start + batch] if batch else pixels
        padded = np.concatenate([piece, np.repeat(piece[-1:], (batch or len(piece)) - len(piece), axis=0)])
        parts.append([result[: len(piece)].copy() for result in run(padded)])
    return [np.concatenate(results) for results in zip(*parts, strict=True)]
