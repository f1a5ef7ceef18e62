"""Calibration images as the toolkit reads them: a text file that names one .npy an image, NCHW, raw scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_dataset(pixels: np.ndarray, folder: Path) -> Path:
    """uint8 [N, H, W, C] into `folder`; the text file's path.

    The first image's corners get 0 and 255, so that the range of raw pixels is 0..255 whatever the images hold:
    at scale 1 the INT8 of the input is exact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for index, image in enumerate(pixels):
        image = image[None].transpose(0, 3, 1, 2).astype(np.float32)
        if index == 0:
            image[:, :, 0, 0], image[:, :, -1, -1] = 0, 255
        name = folder / f"{index}.npy"
        np.save(name, image)
        names.append(str(name))
    listing = folder / "dataset.txt"
    listing.write_text("\n".join(names) + "\n")
    return listing


def split(count: int, calibrate: int, check: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images for calibration and of others for comparing, spread over all; small sets share them."""
    if count <= 2:
        both = np.arange(count)
        return both, both
    calibrate = min(calibrate, max(1, count // 2))
    check = min(check, count - calibrate)
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[:calibrate]), np.sort(order[calibrate : calibrate + check])
