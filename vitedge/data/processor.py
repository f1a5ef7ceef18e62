"""Hugging Face's image processors, as a `Preprocess`, by their `preprocessor_config.json` alone."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from vitedge import documents
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError

TODO = "Pass --preprocess FILE with a preprocess.json that does what the model was trained with."
Number = Annotated[int, Field(strict=True, ge=1, le=2**15)]
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

# PIL.Image.Resampling, by number.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_ENDINGS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")

# What a class does where the file says nothing (transformers 5.24; those before had the same).
_SQUARE = {"height": 224, "width": 224}
_CROPPED = {"size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True, "crop_size": 224}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {"size": _SQUARE},
    "DeiT": {"size": {"height": 256, "width": 256}, "resample": 3, "do_center_crop": True, "crop_size": 224},
    "Beit": {"size": _SQUARE, "resample": 3},
    "EfficientNet": {"size": {"height": 346, "width": 346}, "resample": 3, "include_top": True},
    "Siglip": {"size": _SQUARE, "resample": 3},
    "CLIP": {**_CROPPED, "image_mean": OPENAI_MEAN, "image_std": OPENAI_STD},
    "Bit": {**_CROPPED, "image_mean": OPENAI_MEAN, "image_std": OPENAI_STD},
    "MobileViT": {**_CROPPED, "crop_size": 256, "do_normalize": False, "do_flip_channel_order": True},
    "DINOv3ViT": {"size": _SQUARE, "image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)},
}
# Where one number of `size` is the short side; elsewhere it squashes to a square.
_SHORT_SIDE = ("CLIP", "Bit", "Siglip", "MobileViT")
# config.json's model_type -> the processor that transformers takes where the file names none.
BY_MODEL = {"vit": "ViT", "swin": "ViT", "deit": "DeiT", "dinov3_vit": "DINOv3ViT"}
BY_MODEL |= dict.fromkeys(("dinov2", "dinov2_with_registers"), "Bit")
BY_MODEL |= dict.fromkeys(("clip", "clip_vision_model"), "CLIP")
BY_MODEL |= dict.fromkeys(("siglip", "siglip_vision_model"), "Siglip")

_Size = Number | dict[str, Number | None] | list[Number]


class ImageProcessor(BaseModel):
    """Keys of `preprocessor_config.json` that change what an image becomes."""

    model_config = ConfigDict(extra="ignore")
    image_processor_type: str | None = None
    feature_extractor_type: str | None = None
    do_resize: bool = True
    size: _Size = 224
    resample: int | str = 2
    do_center_crop: bool | None = None
    crop_size: _Size | None = None
    do_rescale: bool = True
    rescale_factor: Annotated[float, Field(gt=0, le=2**16)] = 1 / 255
    rescale_offset: bool = False
    offset: bool = False
    do_normalize: bool = True
    image_mean: list[float] | float = [0.5] * 3
    image_std: list[float] | float = [0.5] * 3
    include_top: bool = False
    do_flip_channel_order: bool = False
    do_pad: bool | None = None
    crop_pct: float | None = None
    do_convert_grayscale: bool | None = None
    do_grayscale: bool | None = None


def from_huggingface(config: Any, name: str = "preprocessor_config.json", model_type: str | None = None) -> Preprocess:
    """Of a `preprocessor_config.json` of the ViT, DeiT and CLIP families; what it leaves out is its class's default.

    `size` given as height and width squashes the image, `shortest_edge` keeps its aspect; one number means the first
    for ViTImageProcessor and the second for CLIP's. `rescale_factor`, an offset and a switched-off normalisation are
    folded into mean and std, which hold for values in [0, 1].

    model_type: of the model beside it, which tells the class where the file does not.
    """
    family = _family(config, model_type)
    if isinstance(config, dict):
        config = _DEFAULTS.get(family or "", {}) | {k: v for k, v in config.items() if v is not None}
    c = documents.validate(config, ImageProcessor, name, todo=TODO)
    _check(c, family)
    cropped = c.crop_size is not None if c.do_center_crop is None and family is None else bool(c.do_center_crop)
    if isinstance(c.size, (int, list)) and cropped and family is None:
        raise unsupported("Hugging Face", f"size {c.size} with a crop, and no image_processor_type")
    squash = "shortest_edge" not in c.size if isinstance(c.size, dict) else family not in _SHORT_SIDE
    if not cropped and not squash:
        raise unsupported("Hugging Face", "shortest_edge without do_center_crop leaves oblong images")
    resize = pixels(c.size, "size")
    mean, std = _normalisation(c, family)
    return Preprocess(
        resize,
        pixels(c.crop_size, "crop_size") if cropped and c.crop_size is not None else resize,
        _RESAMPLE.get(c.resample, c.resample),  # type: ignore[arg-type]  # checked by Preprocess
        mean,
        std,
        squash=squash,
        upright=True,
        channels="bgr" if c.do_flip_channel_order else "rgb",
        corner="floor" if cropped else "round",
    )


def _family(config: Any, model_type: str | None) -> str | None:
    kind = (
        (config.get("image_processor_type") or config.get("feature_extractor_type"))
        if isinstance(config, dict)
        else None
    )
    if not isinstance(kind, str):
        return BY_MODEL.get(model_type or "")
    family = kind
    for ending in _ENDINGS:
        family = family.removesuffix(ending)
    if family not in _DEFAULTS:
        raise unsupported("Hugging Face", f"{kind} is not known")
    return family


def _check(c: ImageProcessor, family: str | None) -> None:
    """Raises VitedgeError for what is not taken over."""
    if not c.do_resize:
        raise unsupported("Hugging Face", "do_resize is off, so images of any size reach the model")
    if c.do_flip_channel_order and family != "MobileViT":  # the others do not have it: whoever wrote it knows more
        raise VitedgeError(
            "Hugging Face's preprocessing can't be taken over: do_flip_channel_order gives the model BGR.",
            "This processor's own class ignores it.",
            'Say what holds in a preprocess.json, and give it with --preprocess: "channels": "bgr", with mean and std '
            "in that order, turns the weights, which is exact.",
        )
    for key in ("do_pad", "crop_pct", "do_convert_grayscale", "do_grayscale"):
        if getattr(c, key):
            raise unsupported("Hugging Face", f"{key} is set")
    if (c.rescale_offset or c.offset) and family not in ("EfficientNet", None):
        raise unsupported("Hugging Face", "an offset is set, which this processor's own class ignores")
    if isinstance(c.resample, str):
        raise unsupported("Hugging Face", f"resample {c.resample!r} is no number, so transformers takes bilinear")
    if family == "DINOv3ViT" and c.resample not in (0, 2):
        raise unsupported("Hugging Face", "resample is not bilinear, and this processor does not clip")
    if isinstance(c.size, dict):
        keys = {k for k, v in c.size.items() if v is not None}
        if keys not in ({"height", "width"}, {"shortest_edge"}):
            raise unsupported("Hugging Face", f"size {c.size} is no size: neither height and width nor shortest_edge")


def _normalisation(c: ImageProcessor, family: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of values in [0, 1]."""
    # x * factor - offset is what gets normalised, where Preprocess has x / 255.
    factor = 255 * (c.rescale_factor if c.do_rescale else 1)
    offset = 1.0 if (c.rescale_offset or c.offset) and c.do_rescale else 0.0
    mean = three(c.image_mean) if c.do_normalize else (0.0,) * 3
    std = three(c.image_std) if c.do_normalize else (1.0,) * 3
    if family == "EfficientNet" and c.include_top:  # it divides once more
        again = three(c.image_std)
        std = tuple(a * b for a, b in zip(std, again, strict=True)) if len(std) == len(again) else std
    mean = tuple(value + offset for value in mean)
    if abs(factor - 1) > 1e-6:  # 1/255 is written with as few as eight digits
        mean, std = tuple(value / factor for value in mean), tuple(value / factor for value in std)
    return mean, std


def three(values: Any) -> tuple[float, ...]:
    """One number stands for all channels, as in the libraries."""
    if isinstance(values, (int, float)):
        return (float(values),) * 3
    return tuple(values) * 3 if len(values) == 1 else tuple(values)


def pixels(size: Any, name: str) -> int | tuple[int, int]:
    """Of both sides, or (height, width): 224, {"shortest_edge": 224} or {"height": 224, "width": 224}."""
    if isinstance(size, dict) and size.get("height") and size.get("width"):
        return size["height"], size["width"]
    values = list(size.values()) if isinstance(size, dict) else size if isinstance(size, list) else [size]
    sides = [v for v in values if v is not None]
    if len(set(sides)) != 1 and not (isinstance(size, list) and len(sides) == 2):
        raise unsupported("Hugging Face", f"{name} {size} is no size")
    return sides[0] if len(set(sides)) == 1 else (sides[0], sides[1])


def unsupported(library: str, why: str) -> VitedgeError:
    """The error for preprocessing that `Preprocess` has not."""
    return VitedgeError(f"{library}'s preprocessing can't be taken over: {why}.", "", TODO)
