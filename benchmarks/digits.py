"""Fine-tuning on images of another kind: scikit-learn's handwritten digits, enlarged from 8x8 pixels.

    python benchmarks/digits.py --model vit_ti_16/ [--json FILE] [further flags of `vitedge train`]

Writes the data set to a temporary folder (a fifth of it as `test`), runs `vitedge train` on it and prints its figures.
Digits must not be mirrored; 112 pixels are enough for them, and four times faster than 224.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 128
FLAGS = ("--image-size", "112", "--no-flip", "--crop-scale", "0.7", "--epochs", "8", "--lr", "3e-4")


def write_digits(folder: Path, seed: int = 0) -> None:
    """`train/<digit>/*.png` and `test/<digit>/*.png`, grey on black with a margin."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    for place, index in enumerate(order.tolist()):
        part = folder / ("test" if place < len(order) // 5 else "train") / str(digits.target[index])
        part.mkdir(parents=True, exist_ok=True)
        drawn = Image.fromarray((digits.images[index] * 255 / 16).astype(np.uint8))
        image = drawn.resize((SIDE, SIDE), Image.BICUBIC)
        padded = Image.new("L", (SIDE * 5 // 4, SIDE * 5 // 4))
        padded.paste(image, (SIDE // 8, SIDE // 8))
        padded.convert("RGB").save(part / f"{index:04}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--json", type=Path)
    known, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        write_digits(Path(folder) / "digits")
        command = [sys.executable, "-m", "vitedge", "train", "--model", known.model, "--data", f"{folder}/digits"]
        command += ["--out", f"{folder}/out", "--json", *FLAGS, *more]
        started = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        figures = json.loads(done.stdout) | {"wall_seconds": round(time.monotonic() - started, 1)}
    shown = {k: figures[k] for k in ("part", "images", "top1", "images_seen", "images_per_second", "wall_seconds")}
    print(json.dumps(shown))
    if known.json:
        known.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
