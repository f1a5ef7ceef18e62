"""Writes the images that stand in for missing calibration images: python calib/make_textures.py FOLDER [COUNT]"""

from __future__ import annotations

import sys
from pathlib import Path

from vitedge.data.textures import draw_textures

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    textures = draw_textures(int(sys.argv[2]) if len(sys.argv) > 2 else 256)
    for index, name in enumerate(textures.files):
        textures.open(index).save(folder / f"{name}.png")
