"""Whether calibration images are fit for it: enough, not all alike, and of the model's kind."""

from __future__ import annotations

import numpy as np

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError

FEW = 32
# Of normalised images; photographs of any one kind (night, snow, X-ray) stay within.
USUAL_MEAN, USUAL_STD = 1.3, (0.3, 2.5)


def check_pixels(pixels: np.ndarray | None, preprocess: Preprocess) -> list[str]:
    """Warnings about calibration images, uint8 [N, H, W, C].

    Raises VitedgeError where there are none, or all are one and the same.
    """
    if pixels is None or not len(pixels):
        raise VitedgeError(
            "Static INT8 needs calibration images, and there are none.",
            "The ranges of the activations come from real images.",
            "Give a folder of a few hundred with --calib, or use --quantize dynamic.",
        )
    warnings = []
    if len(pixels) < FEW:
        warnings.append(
            f"Only {len(pixels)} calibration images; ranges are unsure below {FEW}, best are 128 or more."
        )
    sample = np.asarray(pixels[:: max(1, len(pixels) // 256)])
    if len(pixels) > 1 and all(np.array_equal(sample[0], other) for other in sample[1:]):
        raise VitedgeError(
            f"All {len(pixels)} calibration images are the same image.",
            "Ranges from one image don't hold for others.",
            "Give different images with --calib.",
        )
    normal = preprocess.normalize(sample)
    mean, std = float(normal.mean()), float(normal.std())
    if abs(mean) > USUAL_MEAN or not USUAL_STD[0] < std < USUAL_STD[1]:
        warnings.append(
            f"The first layer's input has mean {mean:.2f} and deviation {std:.2f} on these images, where the "
            "model was trained on about 0 and 1: are they of the model's kind, and is the preprocessing right?"
        )
    return warnings
