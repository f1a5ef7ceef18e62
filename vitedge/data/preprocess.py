"""What happens to a picture between its file and the model; it travels in the bundle, from checkpoint to board."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vitedge.errors import VitedgeError

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class Preprocess:
    """Resize the short side, crop the centre, scale to [0, 1], normalise.

    Attributes:
        resize: length of the short side after resizing, in pixels.
        crop: side of the square centre crop, in pixels: the model's input size.
        interpolation: Pillow's filter of the resize (with antialiasing, as torchvision's `antialias=True`).
        mean, std: per channel, of values in [0, 1].
    """

    resize: int
    crop: int
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def to_dict(self) -> dict:
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Raw pixels uint8 [N, H, W, C] to what the float model takes, float32 [N, C, H, W]."""
        mean = np.asarray(self.mean, np.float32)
        std = np.asarray(self.std, np.float32)
        scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
