"""Draws calib/shapes anew: python calib/make_shapes.py [FOLDER]"""

from __future__ import annotations

import sys
from pathlib import Path

from vitedge.data.shapes import write_shapes

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "shapes"
    print(write_shapes(folder, 128, seed=0, size=48, split="calib", suffix="jpg"))
