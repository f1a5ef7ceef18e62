"""What happens to an image between its file and the model; it travels from checkpoint to board."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from vitedge.errors import VitedgeError
from vitedge.files import write_json

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_MAX_RESIZED = 2**27  # pixels; an image of 1 x 20,000 would otherwise fill the memory


@dataclass(frozen=True)
class Preprocess:
    """Resize the short side, crop the centre, scale to [0, 1], normalise.

    Attributes:
        resize: length of the short side after resizing, in pixels.
        crop: side of the square centre crop, in pixels: the model's input size.
        interpolation: Pillow's filter of the resize (with antialiasing, as torchvision's `antialias=True`).
        mean, std: per channel, of values in [0, 1].
        squash: both sides become `resize` long, whatever the image's aspect ratio (Hugging Face's ViT).

    Raises VitedgeError where a value is of the wrong type or out of range.
    """

    resize: int
    crop: int
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    squash: bool = False

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            value = getattr(self, name)
            _check(type(value) is int and value > 0, name, value, "a number of pixels above 0")
        _check(self.resize >= self.crop, "resize", self.resize, f"at least crop ({self.crop})")
        names = get_args(Interpolation)
        _check(self.interpolation in names, "interpolation", self.interpolation, f"one of {', '.join(names)}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            numbers = isinstance(value, (tuple, list)) and len(value) == 3 and all(map(_is_number, value))
            _check(numbers, name, value, "three finite numbers, one for each of red, green and blue")
            object.__setattr__(self, name, tuple(float(number) for number in value))
        _check(min(self.std) > 0, "std", self.std, "above 0")
        _check(isinstance(self.squash, bool), "squash", self.squash, "true or false")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Any, source: str = "preprocess") -> Preprocess:
        """The inverse of `to_dict`. `source` is named in errors: missing, unknown and wrong keys."""
        known = [field.name for field in fields(cls)]
        if not isinstance(values, dict):
            raise VitedgeError(f"{source} is not a preprocessing.", "It must be a JSON object.", _EXAMPLE)
        if unknown := sorted(set(values) - set(known)):
            raise VitedgeError(
                f"{source} has unknown keys: {', '.join(unknown)}.",
                f"Known are {', '.join(known)}.",
                _EXAMPLE,
            )
        if missing := [name for name in ("resize", "crop", "mean", "std") if name not in values]:
            raise VitedgeError(f"{source} lacks {', '.join(missing)}.", "A guess would ruin the accuracy.", _EXAMPLE)
        try:
            return cls(**values)
        except VitedgeError as error:
            raise VitedgeError(f"{source}: {error.what}", error.why, error.todo) from None

    @classmethod
    def load(cls, path: str | Path) -> Preprocess:
        """From a `preprocess.json`. Raises VitedgeError where it is missing, no JSON, or wrong."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise VitedgeError(f"{path} could not be read.", f"{error.strerror}.", "Check the path.") from error
        except ValueError as error:  # malformed JSON, or bytes that are no UTF-8
            raise VitedgeError(f"{path} is not JSON.", f"{error}.", _EXAMPLE) from error
        return cls.from_dict(values, str(path))

    def save(self, path: str | Path) -> None:
        """Writes `preprocess.json` atomically."""
        write_json(path, self.to_dict())

    def with_image_size(self, size: int) -> Preprocess:
        """The same for another input size, in pixels: the crop keeps its share of the resized image.

        Rounded down, as timm does (`floor(size / crop_pct)`).
        """
        _check(isinstance(size, int) and size > 0, "image size", size, "a number of pixels above 0")
        return replace(self, crop=size, resize=self.resize * size // self.crop)

    def apply(self, image: Image.Image) -> np.ndarray:
        """One image to uint8 [crop, crop, 3] in RGB.

        Equal, pixel for pixel, to torchvision's `Resize(resize, interpolation, antialias=True)` and
        `CenterCrop(crop)` on the same Pillow image (with `Resize((resize, resize))` where `squash` is set).
        Raises ValueError where the image is so narrow that it can't be resized.
        """
        image = image if image.mode == "RGB" else image.convert("RGB")
        width, height = image.size
        # torchvision truncates the long side, and rounds the crop's corner half to even.
        short = min(width, height)
        wide = self.resize if self.squash else self.resize * width // short
        high = self.resize if self.squash else self.resize * height // short
        if wide * high > _MAX_RESIZED:
            raise ValueError(f"{width} x {height} pixels are too narrow to resize")
        image = image.resize((wide, high), FILTERS[self.interpolation])
        left, top = round((wide - self.crop) / 2), round((high - self.crop) / 2)
        return np.array(image.crop((left, top, left + self.crop, top + self.crop)))

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Raw pixels uint8 [N, H, W, C] to what the float model takes, float32 [N, C, H, W]."""
        mean = np.asarray(self.mean, np.float32)
        std = np.asarray(self.std, np.float32)
        scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check(good: bool, name: str, value: Any, wanted: str) -> None:
    if not good:
        raise VitedgeError(f"The preprocessing's {name} is {value!r}.", f"It must be {wanted}.", _EXAMPLE)


_EXAMPLE = (
    'Write it as {"resize": 256, "crop": 224, "interpolation": "bilinear", '
    '"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}.'
)

PRESETS = {
    "imagenet": Preprocess(256, 224, "bilinear"),
    "inception": Preprocess(248, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def parse_preprocess(text: str) -> Preprocess:
    """`--preprocess`: the name of a preset, or the path of a `preprocess.json`."""
    if text in PRESETS:
        return PRESETS[text]
    if not Path(text).is_file():
        raise VitedgeError(
            f"There is no preprocessing {text!r}.",
            f"It is neither a preset ({', '.join(PRESETS)}) nor a file.",
            "Pass a preset, or the path of a preprocess.json.",
        )
    return Preprocess.load(text)
