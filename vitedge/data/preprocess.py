"""What happens to an image between its file and the model; it travels from checkpoint to board."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import numpy as np
from PIL import Image

from vitedge import documents
from vitedge.data.image import open_rgb
from vitedge.errors import VitedgeError
from vitedge.files import write_json

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Side = int | tuple[int, int]  # pixels: of both sides, or (height, width)

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_MAX_SIDE = 2**13
_MAX_CHANNELS = 2**10
_MOST_OF_ONE = 4.0  # no mean or std of values in [0, 1] is larger
_MAX_RESIZED = 2**27  # pixels; an image of 1 x 20,000 would otherwise fill the memory


class Reading(TypedDict):
    """Keywords of `image.open_rgb` and `image.decode`."""

    upright: bool
    grey16: Literal["clip", "scale"]
    grey: bool


@dataclass(frozen=True)
class Preprocess:
    """Resize the short side, crop the centre, scale to [0, 1], normalise.

    Attributes:
        resize: length of the short side after resizing, in pixels; (height, width) is what the image at least covers.
        crop: side of the square centre crop, in pixels, or its (height, width): the model's input size.
        interpolation: Pillow's filter of the resize (with antialiasing, as torchvision's `antialias=True`).
        mean, std: per channel, of values in [0, 1]. Where there are not three, images are given as ready pixels.
        squash: the image becomes `resize` large, whatever its aspect ratio (Hugging Face's ViT).
        upright: the image is turned as its EXIF orientation says before all else, as Hugging Face's loaders do;
            torchvision's and timm's leave it as stored.
        grey16: 16-bit grey becomes 8-bit by clipping at 255, as Pillow's `convert("RGB")` does for all of these
            libraries, or by scaling.
        channels: what the model was trained on. "grey": Pillow's `convert("L")`, all three channels the same. "bgr":
            `load_model` turns the weights and mean and std around, so that no artifact ever sees it.
        corner: where the crop begins if half a pixel is left over: rounded half to even (torchvision, timm), or down
            (transformers).

    Raises VitedgeError where a value is of the wrong type or out of range.
    """

    resize: Side
    crop: Side
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    squash: bool = False
    upright: bool = False
    grey16: Literal["clip", "scale"] = "clip"
    channels: Literal["rgb", "bgr", "grey"] = "rgb"
    corner: Literal["round", "floor"] = "round"

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            value = getattr(self, name)
            sides = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value, value)
            good = all(type(side) is int and 0 < side <= _MAX_SIDE for side in sides)
            _check(good, name, value, f"from 1 to {_MAX_SIDE} pixels, or two such numbers: height and width")
            object.__setattr__(self, name, sides[0] if sides[0] == sides[1] else tuple(sides))
        covers = all(large >= small for large, small in zip(_pair(self.resize), self.size, strict=True))
        _check(covers, "resize", self.resize, f"at least crop ({self.crop})")
        names = get_args(Interpolation)
        _check(self.interpolation in names, "interpolation", self.interpolation, f"one of {', '.join(names)}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if self.channels == "grey" and isinstance(value, (tuple, list)) and len(value) == 1:
                value = value * 3
            several = isinstance(value, (tuple, list)) and 1 < len(value) <= _MAX_CHANNELS
            alone = isinstance(value, (tuple, list)) and len(value) == 1
            wanted = "finite numbers, one for each channel" + ("; one alone is for grey images" if alone else "")
            good = several and all(map(_is_number, value))
            _check(good, name, value, wanted, 'Add "channels": "grey" to it.' if alone else _EXAMPLE)
            object.__setattr__(self, name, tuple(float(number) for number in value))
        _check(len(self.mean) == len(self.std), "std", self.std, f"as many numbers as mean ({len(self.mean)})")
        _check(min(self.std) > 1e-6, "std", self.std, "above 0")
        for name in ("squash", "upright"):
            _check(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")
        for name, choices in (("grey16", ("clip", "scale")), ("channels", ("rgb", "bgr", "grey"))):
            _check(getattr(self, name) in choices, name, getattr(self, name), f"one of {', '.join(choices)}")
        _check(self.corner in ("round", "floor"), "corner", self.corner, "round or floor")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the model's input."""
        return _pair(self.crop)

    @property
    def bands(self) -> int:
        """Channels of the pixels: three of an image file, also where the model was trained on grey."""
        return len(self.mean)

    def with_bands(self, count: int) -> Preprocess:
        """The same for so many channels, where all have one mean and one deviation. Raises VitedgeError where not."""
        if count == self.bands:
            return self
        alike = len({*self.mean}) == len({*self.std}) == 1
        _check(alike, "mean", self.mean, f"{count} numbers, one for each channel of the model")
        return replace(self, mean=self.mean[:1] * count, std=self.std[:1] * count)

    def to_dict(self) -> dict[str, object]:
        sides = {n: list(v) if isinstance(v := getattr(self, n), tuple) else v for n in ("resize", "crop")}
        return asdict(self) | sides | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def centred(cls, size: tuple[int, int], channels: int) -> Preprocess:
        """Values from -1 to 1, of images (height, width): for a model that says nothing about it."""
        half = (0.5,) * channels
        return cls(max(size), size, mean=half, std=half)

    @classmethod
    def from_dict(cls, values: Any, source: str = "preprocess") -> Preprocess:
        """The inverse of `to_dict`, also of one whose mean and std are of values in [0, 255].

        `source` is named in errors: missing, unknown and wrong keys.
        """
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
            mean, std = _in_units_of_one(values["mean"], values["std"])
            return cls(**(values | {"mean": mean, "std": std}))
        except VitedgeError as error:
            raise VitedgeError(f"{source}: {error.what}", error.why, error.todo) from None

    @classmethod
    def load(cls, path: str | Path) -> Preprocess:
        """From a `preprocess.json`. Raises VitedgeError where it is missing, no JSON, or wrong."""
        return cls.from_dict(documents.read_json(path, todo=_EXAMPLE), str(path))

    def save(self, path: str | Path) -> None:
        """Writes `preprocess.json` atomically."""
        write_json(path, self.to_dict())

    def with_image_size(self, size: Side) -> Preprocess:
        """The same for another input size, in pixels: the crop keeps its share of the resized image.

        Rounded down, as timm does (`floor(size / crop_pct)`).
        """
        sides = _pair(size)
        good = all(isinstance(side, int) and 0 < side <= _MAX_SIDE for side in sides)
        _check(good, "image size", size, f"from 1 to {_MAX_SIDE} pixels")
        if sides == self.size:
            return self
        before = zip(_pair(self.resize), self.size, sides, strict=True)
        larger = tuple(min(resize * side // crop, _MAX_SIDE) for resize, crop, side in before)
        return replace(self, crop=sides, resize=(larger[0], larger[1]))

    def difference(self, other: Preprocess) -> str:
        """The fields in which `other` differs, with both values: "mean (0.5, 0.5, 0.5), was (0.485, 0.456, 0.406)"."""
        mine, theirs = asdict(self), asdict(other)
        return "; ".join(f"{name} {mine[name]}, was {theirs[name]}" for name in mine if mine[name] != theirs[name])

    def as_rgb(self) -> Preprocess:
        """The same of a model whose weights were turned from BGR to RGB."""
        return replace(self, channels="rgb", mean=self.mean[::-1], std=self.std[::-1])

    @property
    def reading(self) -> Reading:
        """How `image.open_rgb` and `image.decode` read a file for it."""
        return {"upright": self.upright, "grey16": self.grey16, "grey": self.channels == "grey"}

    def open(self, path: str | Path) -> Image.Image:
        """The image in that file, RGB. Raises `UnreadableImage`."""
        return open_rgb(path, **self.reading)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of an image after the resize. Raises ValueError where it is too narrow for one."""
        high, wide = _pair(self.resize)
        if not self.squash and high == wide:
            short = min(width, height)
            # torchvision truncates the long side.
            wide, high = wide * width // short, high * height // short
        elif not self.squash:  # as timm's ResizeKeepRatio
            ratio = min(height / high, width / wide)
            wide, high = max(wide, round(width / ratio)), max(high, round(height / ratio))
        if wide * high > _MAX_RESIZED:
            raise ValueError(f"{width} x {height} pixels are too narrow to resize")
        return wide, high

    def resize_image(self, image: Image.Image) -> Image.Image:
        """The image after the resize, RGB; without its colours where the model has none.

        Raises ValueError where it is too narrow, or the model takes other channels than an image file has.
        """
        if self.bands != 3:
            raise ValueError(f"an image file has no {self.bands} channels: give ready pixels")
        if self.channels == "grey":
            image = image.convert("L")
        image = image if image.mode == "RGB" else image.convert("RGB")
        return image.resize(self.resized(*image.size), FILTERS[self.interpolation])

    def apply(self, image: Image.Image) -> np.ndarray:
        """One image to uint8 [height, width, 3] in RGB.

        Equal, pixel for pixel, to torchvision's `Resize(resize, interpolation, antialias=True)` and
        `CenterCrop(crop)` on the same Pillow image (with `Resize((resize, resize))` where `squash` is set), or to those
        of transformers where `corner` is "floor".
        Raises ValueError as `resize_image` does.
        """
        image, (high, wide) = self.resize_image(image), self.size
        # torchvision rounds the crop's corner half to even.
        over = image.width - wide, image.height - high
        left, top = (n // 2 if self.corner == "floor" else round(n / 2) for n in over)
        return np.array(image.crop((left, top, left + wide, top + high)))

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Raw pixels uint8 [N, H, W, C] to what the float model takes, float32 [N, C, H, W]."""
        mean = np.asarray(self.mean, np.float32)
        std = np.asarray(self.std, np.float32)
        scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _pair(side: Side) -> tuple[int, int]:
    """(height, width)."""
    return (side, side) if isinstance(side, int) else (side[0], side[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _large(*values: object) -> bool:
    numbers = [n for several in values if isinstance(several, (list, tuple)) for n in several]
    return all(map(_is_number, numbers)) and max((abs(n) for n in numbers), default=0) > _MOST_OF_ONE


def _in_units_of_one(mean: Any, std: Any) -> tuple[Any, Any]:
    """mean and std of values in [0, 255], as mmcv and rknn write them (123.675, 58.395), for values in [0, 1]."""
    if not _large(mean, std):
        return mean, std
    # What is no list is refused by its name later.
    mean, std = ([n / 255 for n in one] if isinstance(one, (list, tuple)) else one for one in (mean, std))
    return mean, std


def unit_note(path: str | Path) -> str | None:
    """What to say where a preprocess.json's mean and std are of values in [0, 255], else None. Raises VitedgeError."""
    values = documents.read_json(path, todo=_EXAMPLE)
    if not isinstance(values, dict) or not {"mean", "std"} <= set(values):
        return None
    if not _large(values["mean"], values["std"]):
        return None
    return f"mean {values['mean']} and std {values['std']} in {path} are of pixels in 0..255: divided by 255"


_EXAMPLE = (
    'Write it as {"resize": 256, "crop": 224, "interpolation": "bilinear", '
    '"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}.'
)


def _check(good: bool, name: str, value: Any, wanted: str, todo: str = _EXAMPLE) -> None:
    if not good:
        raise VitedgeError(f"The preprocessing's {name} is {value!r}.", f"It must be {wanted}.", todo)


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
