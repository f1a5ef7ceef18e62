"""The drawn `shapes` set: small labelled images for a demo, and for tests without photographs."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from vitedge.data.shape_drawing import FIGURES, TEXTURES, draw
from vitedge.errors import VitedgeError
from vitedge.files import atomic_dir

SHAPES = tuple(function.__name__ for function in (*FIGURES, *TEXTURES))
SPLITS = ("train", "val", "test", "calib")


def draw_shapes(n: int, seed: int = 0, size: int = 48, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """`n` images and their labels: uint8 [n, size, size, 3], int64 [n].

    Ten classes (`SHAPES`) in turn, so that every stretch of ten holds each once. Image i is the same for
    every n; other seeds and splits have no image in common.
    """
    if n < 1 or size < 16 or split not in SPLITS:
        raise VitedgeError(
            f"There are no shapes of n={n}, size={size}, split={split!r}.",
            f"They are drawn from 1 image and 16 pixels on, for the splits {', '.join(SPLITS)}.",
            "Change what is out of range.",
        )
    labels = np.arange(n, dtype=np.int64) % len(SHAPES)
    pixels = np.empty((n, size, size, 3), np.uint8)
    for index, label in enumerate(labels):
        pixels[index] = draw(int(label), size, np.random.default_rng([seed, SPLITS.index(split), index]))
    return pixels, labels


def write_shapes(
    folder: str | Path,
    n: int,
    seed: int = 0,
    size: int = 48,
    split: str = "train",
    suffix: Literal["png", "jpg"] = "png",
) -> Path:
    """Writes a data set of `draw_shapes`: `images/`, `labels.csv`, `classes.txt`. Returns its folder.

    A folder that is there is replaced as a whole, so that no images of another drawing stay in it; one that
    holds anything but such a set is refused.
    """
    folder = Path(folder)
    if folder.exists() and {entry.name for entry in folder.iterdir()} - {
        "images",
        "labels.csv",
        "classes.txt",
    }:
        raise VitedgeError(f"{folder} holds other files.", "They would be lost.", "Pass a new folder.")
    pixels, labels = draw_shapes(n, seed, size, split)
    rows = io.StringIO()
    table = csv.writer(rows, lineterminator="\n")
    table.writerow(["file", "label"])
    with atomic_dir(folder) as temporary:
        (temporary / "images").mkdir()
        for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            name = f"images/{index:05}.{suffix}"
            # As a JPEG: 4:4:4, so that the colours of small figures survive. PNG takes no notice of the two.
            Image.fromarray(image).save(temporary / name, quality=90, subsampling=0)
            table.writerow([name, label])
        (temporary / "labels.csv").write_text(rows.getvalue(), encoding="utf-8")
        (temporary / "classes.txt").write_text("\n".join(SHAPES) + "\n", encoding="utf-8")
    return folder
