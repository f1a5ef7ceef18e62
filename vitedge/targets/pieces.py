"""Batches of any size through an artifact with a fixed one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def in_pieces(run: Callable[[np.ndarray], np.ndarray], batch: int | None, pixels: np.ndarray) -> np.ndarray:
    """run(pixels) for `pixels` [N, H, W, C], in pieces of `batch`; a short last one is padded. None: any size."""
    if batch is None or len(pixels) == batch:
        return run(pixels)
    parts = []
    for start in range(0, len(pixels), batch):
        piece = pixels[start : start + batch]
        padded = np.concatenate([piece, np.repeat(piece[-1:], batch - len(piece), axis=0)])
        parts.append(run(padded)[: len(piece)].copy())
    return np.concatenate(parts)
