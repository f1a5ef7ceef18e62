"""Image files to RGB."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import IO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

Grey16 = Literal["clip", "scale"]
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".jfif"}
    | ({".avif"} if features.check("avif") else set())
)
# Suffix -> what such a file is, and what to do with it.
_CONVERT = "Convert them to JPEG or PNG first (on Linux: heif-convert, magick; on a Mac: sips -s format jpeg)."
UNREAD = {
    **dict.fromkeys((".heic", ".heif"), ("HEIC images, as phones save them", _CONVERT)),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf"), ("raw images of cameras", _CONVERT)),
    **dict.fromkeys((".svg", ".psd", ".pdf", ".jxl", ".jp2"), ("images of a format that is not read", _CONVERT)),
    **dict.fromkeys(
        (".npy", ".npz"),
        ("NumPy arrays", "Give the image files: vitedge prepares them itself, as the model's preprocessing says."),
    ),
    ".mp4": ("films", "Extract their images first: ffmpeg -i FILM -r 1 %05d.jpg."),
}
MOST_PIXELS = 2**27  # 400 MB as RGB, for each thread that decodes
# First bytes of what is saved under an image's name -> what it is.
_KINDS = (
    (b"version https://git-lfs", "it is a Git LFS pointer, not the image (run `git lfs pull`)"),
    (b"<!doctype html", "it is an HTML page, not an image"),
    (b"<html", "it is an HTML page, not an image"),
    (b"<svg", "it is an SVG drawing, which has no pixels"),
    (b"%pdf", "it is a PDF"),
    (b"\x93numpy", "it is a NumPy array"),
)
_HEIC = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc", b"ftypmsf1")


class UnreadableImage(Exception):
    """A file that holds no image, or a broken one. The loader collects these; no user sees one."""

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path, self.reason = str(path), reason
        super().__init__(f"{path}: {reason}")


def is_image(path: Path) -> bool:
    """By its name only. Hidden files are none: macOS leaves `._cat.jpg` beside `cat.jpg`."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def open_rgb(path: str | Path, *, upright: bool = True, grey16: Grey16 = "scale", grey: bool = False) -> Image.Image:
    """The image in the file `path`, as `decode` gives it. Raises UnreadableImage, also for a FIFO or a device."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise UnreadableImage(path, "it is no regular file")
        with open(path, "rb") as file:
            return decode(file, path, upright=upright, grey16=grey16, grey=grey)
    except OSError as error:
        raise UnreadableImage(path, error.strerror or str(error)) from error


def decode(
    file: IO[bytes], name: str | Path, *, upright: bool = True, grey16: Grey16 = "scale", grey: bool = False
) -> Image.Image:
    """The image in `file`, RGB; with `upright`, turned as its EXIF orientation says; with `grey`, without its colours.

    Grey, palette, CMYK and 1-bit images are converted. Transparency is dropped without blending, as
    `Image.convert("RGB")` does in the loaders of torchvision, timm and Hugging Face, by which models were
    trained. 16-bit grey is scaled to 8 bit, or clipped at 255 as Pillow alone does it. Of an animation: the
    first frame.

    Raises:
        UnreadableImage: empty, truncated, no image, too large, or of a range that is not known (32-bit, float).
    """
    try:
        with Image.open(file) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels are more than {MOST_PIXELS:,}")
            opened.load()
            image = _to_rgb(_upright(opened) if upright else opened, grey16)
            return image.convert("L").convert("RGB") if grey else image
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more
        raise UnreadableImage(name, _reason(error, file, str(name))) from error


def _reason(error: Exception, file: IO[bytes], name: str) -> str:
    if isinstance(error, MemoryError):
        return "the memory is too small for it"
    if not isinstance(error, UnidentifiedImageError):
        return (str(error) or type(error).__name__).replace(repr(name), "the file")
    file.seek(0)
    head = file.read(256)
    if not head:
        return "the file is empty"
    if head[4:12] in _HEIC:
        return "it is a HEIC image, which is not read: convert it to JPEG"
    text = head.lstrip().lower()
    return next((kind for start, kind in _KINDS if text.startswith(start)), "it is no image of a known format")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF beside whole pixels
        return image


def _to_rgb(image: Image.Image, grey16: Grey16) -> Image.Image:
    if image.mode == "P":
        # By way of RGBA: Pillow warns of palettes whose transparency is a byte string.
        image = image.convert("RGBA")
    elif image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        # 16-bit files also come in the 32-bit mode "I", which has no range of its own.
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels of unknown range")
        eight = (values * 255 + 32767) // 65535 if grey16 == "scale" else values.clip(max=255)
        image = Image.fromarray(eight.astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels of unknown range")
    return image.convert("RGB")
