"""The trained ViT-Ti/16 as weights, and its photographs as pixels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitedge.data.image import open_rgb


def pixels_of(folder: Path, n: int) -> np.ndarray:
    """The first `n` images of `folder` (256 x 256): resize 248, bicubic, crop 224; uint8 [n, 224, 224, 3]."""
    with (folder / "labels.csv").open() as file:
        names = [row["file"] for row in csv.DictReader(file)][:n]
    resized = [open_rgb(folder / name).resize((248, 248), Image.Resampling.BICUBIC) for name in names]
    return np.stack([np.asarray(image.crop((12, 12, 236, 236))) for image in resized])


@pytest.fixture(scope="session")
def trained(shared_data):
    """The configuration, weights and preprocessing of ViT-Ti/16."""
    from vitedge.vit.checkpoint import load_model

    loaded = load_model(str(shared_data / "vit_ti_16"))
    weights = {k: v.detach().numpy() for k, v in loaded.model.state_dict().items()}
    return loaded.model.config, weights, loaded.preprocess


@pytest.fixture(scope="session")
def photographs(shared_data) -> dict[str, np.ndarray]:
    """32 calibration images and 48 others."""
    return {"calib": pixels_of(shared_data / "calib", 32), "val": pixels_of(shared_data / "val", 48)}
