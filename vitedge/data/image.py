"""Image files to RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".jfif"}
)


class UnreadableImage(Exception):
    """A file that holds no image, or a broken one. The loader collects these; no user sees one."""

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path, self.reason = str(path), reason
        super().__init__(f"{path}: {reason}")


def is_image(path: Path) -> bool:
    """By its name only. Hidden files are none: macOS leaves `._cat.jpg` beside `cat.jpg`."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def open_rgb(path: str | Path) -> Image.Image:
    """The image in `path`, RGB, turned upright as its EXIF orientation says.

    Grey, palette, CMYK and 1-bit images are converted. Transparency is dropped without blending, as
    `Image.convert("RGB")` does in the loaders of torchvision, timm and Hugging Face, by which models were
    trained. 16-bit grey is scaled to 8 bit (Pillow alone would clip it to white). Of an animation: the first
    frame.

    Raises:
        UnreadableImage: empty, truncated, no image, or of a range that is not known (32-bit, float).
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            image = _upright(opened)
            return _to_rgb(image)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more
        empty = isinstance(error, OSError) and Path(path).is_file() and Path(path).stat().st_size == 0
        text = "the file is empty" if empty else str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError) and not empty:
            text = "it is no image of a known format"
        raise UnreadableImage(path, text.replace(repr(str(path)), "the file")) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF beside whole pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "P":
        # By way of RGBA: Pillow warns of palettes whose transparency is a byte string.
        image = image.convert("RGBA")
    elif image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        # 16-bit files also come in the 32-bit mode "I", which has no range of its own.
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels of unknown range")
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels of unknown range")
    return image.convert("RGB")
