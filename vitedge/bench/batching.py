"""Feeding any number of images to a runner whose batch may be fixed."""

from __future__ import annotations

import numpy as np

from vitedge.targets.base import Runner
from vitedge.targets.pieces import in_pieces


def infer_all(runner: Runner, pixels: np.ndarray) -> np.ndarray:
    """Logits float32 [N, classes] of `pixels` uint8 [N, H, W, 3], N >= 1, for any batch of the runner.

    A fixed batch is filled up with copies of the last image, whose logits are dropped.
    """

    def run(part: np.ndarray) -> np.ndarray:
        return np.asarray(runner.infer(np.ascontiguousarray(part)), np.float32)

    return in_pieces(run, runner.batch, pixels)


def as_batches(pixels: np.ndarray, batch: int) -> list[np.ndarray]:
    """Inputs for timing, each [batch, H, W, 3]: the images in turn, repeated where there are too few."""
    wanted = max(1, len(pixels) // batch) * batch
    filled = pixels[np.arange(wanted) % len(pixels)]
    return [np.ascontiguousarray(part) for part in filled.reshape(-1, batch, *pixels.shape[1:])]
