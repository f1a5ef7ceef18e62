"""What an assignment costs in accuracy, without labels and with a small error: expected points of top-1.

Counting the images whose class changes is a coarse measure: at 3 % of 96 images its standard error is 1.7 points, and
whether a limit is kept is chance. Two things make it finer. A class that changes between two that are nearly equally
likely costs nearly nothing: where the float model's probabilities are calibrated, p(a) - p(b). And the noise of the
rounding is measured, not only its one outcome: of its size on an image's likeliest classes follows what it costs on
average over its sign.
"""

from __future__ import annotations

import math

import numpy as np

from vitedge.metrics import mean_and_error

# The classes that noise may make the first, and draws of the noise.
_CLASSES, _DRAWS = 64, 256


def noise_power(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """float64 [N]: variance of the error on each image's likeliest classes; what moves all of them alike is none."""
    top = _likeliest(reference)
    error = np.take_along_axis(logits.astype(np.float64) - reference, top, 1)
    if error.shape[1] > 1:
        error = error - error.mean(1, keepdims=True)
    return np.asarray((error**2).mean(1) * error.shape[1] / max(error.shape[1] - 1, 1))


def expected_drop(reference: np.ndarray, power: np.ndarray) -> tuple[float, float]:
    """(points of top-1 that noise of this variance costs on average, their standard error over images).

    reference: FP32's logits [N, classes]; power: [N], of `noise_power`. An image whose first class a gives way to b
    costs p(a) - p(b). The same draws each time, so that two assignments differ by their noise alone.
    """
    return mean_and_error(100 * _losses(reference.astype(np.float64), np.sqrt(power)))


def _losses(reference: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """float64 [N]: the share of probability that each image loses on average."""
    if reference.shape[1] == 1:
        # Yes or no: the class changes where the noise is larger than the logit.
        z = reference[:, 0]
        tail = np.array(
            [0.5 * math.erfc(abs(x) / (s * math.sqrt(2))) if s else 0.0 for x, s in zip(z, sigma, strict=True)]
        )
        return np.asarray(np.abs(np.tanh(z / 2)) * tail)
    shifted = np.exp(reference - reference.max(1, keepdims=True))
    top = _likeliest(reference)
    p = np.take_along_axis(shifted / shifted.sum(1, keepdims=True), top, 1)
    z = np.take_along_axis(reference, top, 1)
    rng = np.random.default_rng(0)
    losses = np.zeros(len(z))
    for number, (one, likely, size) in enumerate(zip(z, p, sigma, strict=True)):
        draws = rng.standard_normal((_DRAWS, z.shape[1]))
        first = (one + size * draws).argmax(1)
        losses[number] = (likely.max() - likely[first]).mean()
    return losses


def _likeliest(reference: np.ndarray) -> np.ndarray:
    """int [N, k]: the classes with the largest logits."""
    return np.argsort(-reference, axis=1, kind="stable")[:, : min(_CLASSES, reference.shape[1])]
