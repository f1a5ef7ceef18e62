"""The preprocessing that a checkpoint's own library describes, as a `Preprocess`.

None of these libraries is imported: their configurations are dictionaries, or objects with plain attributes.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vitedge import documents
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError

_TODO = "Pass --preprocess FILE with a preprocess.json that does what the model was trained with."

_Number = Annotated[int, Field(strict=True, ge=1, le=2**15)]

# PIL.Image.Resampling, by number, as Hugging Face writes it.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def from_torchvision(transforms: Any) -> Preprocess:
    """Of `weights.transforms()` (torchvision.transforms._presets.ImageClassification)."""
    try:
        resize, crop = transforms.resize_size, transforms.crop_size
        return Preprocess(
            resize[0] if isinstance(resize, (list, tuple)) else resize,
            crop[0] if isinstance(crop, (list, tuple)) else crop,
            str(transforms.interpolation.value),  # type: ignore[arg-type]  # checked by Preprocess
            tuple(transforms.mean),
            tuple(transforms.std),
        )
    except AttributeError as error:
        raise _unsupported("torchvision", f"they have no {error.name}") from error


class TimmData(BaseModel):
    """timm's `pretrained_cfg`: what it says of images."""

    model_config = ConfigDict(extra="ignore")
    input_size: tuple[_Number, _Number, _Number] = (3, 224, 224)
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values


class ImageProcessor(BaseModel):
    """Hugging Face's `preprocessor_config.json`: keys that change what an image becomes."""

    model_config = ConfigDict(extra="ignore")
    image_processor_type: str | None = None
    feature_extractor_type: str | None = None
    do_resize: bool | None = True
    size: _Number | dict[str, _Number | None] | list[_Number] = 224
    resample: int | str | None = 2
    do_center_crop: bool | None = None
    crop_size: _Number | dict[str, _Number | None] | list[_Number] | None = None
    do_rescale: bool | None = True
    rescale_factor: Annotated[float, Field(gt=0, le=2**16)] | None = 1 / 255
    rescale_offset: bool | None = None
    offset: bool | None = None
    do_normalize: bool | None = True
    image_mean: list[float] | float | None = None
    image_std: list[float] | float | None = None
    do_flip_channel_order: bool | None = None
    do_pad: bool | None = None
    crop_pct: float | None = None
    do_convert_grayscale: bool | None = None
    do_grayscale: bool | None = None


# Processors whose resize is known, by the name without its ending: does a plain number of `size` squash to a square?
_SQUASHES = dict.fromkeys(("ViT", "DeiT", "Beit", "EfficientNet"), True)
_SQUASHES |= dict.fromkeys(("Siglip", "CLIP", "Bit"), False)
_ENDINGS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")


def from_timm(config: Any, name: str = "pretrained_cfg") -> Preprocess:
    """Of a timm `pretrained_cfg` (`model.pretrained_cfg`), or of a timm `config.json` that holds one.

    Defaults and rounding as in timm.data.resolve_data_config and transforms_factory.transforms_imagenet_eval. For one
    channel timm's datasets read images in Pillow's mode "L".
    """
    inner = config.get("pretrained_cfg", config) if isinstance(config, dict) else config
    data = documents.validate(inner, TimmData, name, todo=_TODO)
    if data.crop_mode not in ("center", "squash"):
        raise _unsupported("timm", f"crop_mode {data.crop_mode!r} pads the image")
    channels, *sides = data.input_size
    high, wide = (math.floor(side / data.crop_pct) for side in sides)
    return Preprocess(
        (high, wide),
        (sides[0], sides[1]),
        data.interpolation,  # type: ignore[arg-type]  # checked by Preprocess
        _each(data.mean, channels),
        _each(data.std, channels),
        squash=data.crop_mode == "squash",
        channels="grey" if data.input_size[0] == 1 else "rgb",
    )


def from_huggingface(config: Any, name: str = "preprocessor_config.json") -> Preprocess:
    """Of a Hugging Face `preprocessor_config.json` of the ViT, DeiT and CLIP families.

    `size` given as height and width squashes the image to a square, `shortest_edge` keeps its aspect; one number means
    the first for ViTImageProcessor and the second for CLIP's. `rescale_factor`, an offset and a switched-off
    normalisation are folded into mean and std, which hold for values in [0, 1].
    """
    c = documents.validate(config, ImageProcessor, name, todo=_TODO)
    kind = c.image_processor_type or c.feature_extractor_type
    family = kind
    for ending in _ENDINGS:
        family = family.removesuffix(ending) if family else None
    if family is not None and family not in _SQUASHES:
        raise _unsupported("Hugging Face", f"{kind} is not known")
    if c.do_resize is False:
        raise _unsupported("Hugging Face", "do_resize is off, so images of any size reach the model")
    if c.do_flip_channel_order:
        raise VitedgeError(
            "Hugging Face's preprocessing can't be taken over: do_flip_channel_order gives the model BGR.",
            "Every artifact takes RGB.",
            "Flip the weights instead, which is exact: patch embedding weight[:, [2, 1, 0]], image_mean and image_std "
            "reversed, do_flip_channel_order false.",
        )
    for key in ("do_pad", "crop_pct", "do_convert_grayscale", "do_grayscale"):
        if getattr(c, key):
            raise _unsupported("Hugging Face", f"{key} is set")
    cropped = c.crop_size is not None if c.do_center_crop is None else c.do_center_crop
    if isinstance(c.size, (int, list)) and cropped and family is None:
        raise _unsupported("Hugging Face", f"size {c.size} with a crop, and no image_processor_type")
    squash = "shortest_edge" not in c.size if isinstance(c.size, dict) else _SQUASHES.get(family or "ViT", True)
    resize = _sides(c.size, "size")
    if not cropped and not squash:
        raise _unsupported("Hugging Face", "shortest_edge without do_center_crop leaves oblong images")
    # x * factor - offset is what gets normalised, where Preprocess has x / 255.
    factor = 255 * ((c.rescale_factor or 1 / 255) if c.do_rescale is not False else 1)
    offset = 1.0 if (c.rescale_offset or c.offset) and c.do_rescale is not False else 0.0
    normalised = c.do_normalize is not False
    default, default_std = (_OPENAI_MEAN, _OPENAI_STD) if family == "CLIP" else ((0.5,) * 3,) * 2
    mean = _three(c.image_mean if c.image_mean is not None else default) if normalised else (0.0,) * 3
    std = _three(c.image_std if c.image_std is not None else default_std) if normalised else (1.0,) * 3
    mean = tuple(value + offset for value in mean)
    if abs(factor - 1) > 1e-6:  # 1/255 is written with as few as eight digits
        mean, std = tuple(value / factor for value in mean), tuple(value / factor for value in std)
    resample = 2 if c.resample is None else c.resample
    return Preprocess(
        resize,
        _sides(c.crop_size, "crop_size") if cropped and c.crop_size is not None else resize,
        _RESAMPLE.get(resample, resample) if isinstance(resample, int) else resample,  # type: ignore[arg-type]
        mean,
        std,
        squash=squash,
        upright=True,
        corner="floor" if cropped else "round",
    )


class OpenClipData(BaseModel):
    """open_clip's `preprocess_cfg`."""

    model_config = ConfigDict(extra="ignore")
    size: _Number | list[_Number] | None = None
    mode: str = "RGB"
    mean: list[float] | float = list(_OPENAI_MEAN)
    std: list[float] | float = list(_OPENAI_STD)
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


def from_open_clip(config: Any, size: tuple[int, int], name: str = "preprocess_cfg") -> Preprocess:
    """Of open_clip's `preprocess_cfg`; `size`: of the model's images, where it names none."""
    values = {k: v for k, v in config.items() if v is not None} if isinstance(config, dict) else config
    data = documents.validate(values, OpenClipData, name, todo=_TODO)
    if data.resize_mode not in ("shortest", "squash") or data.mode != "RGB":
        why = f"mode {data.mode}" if data.mode != "RGB" else f"resize_mode {data.resize_mode!r} pads the image"
        raise _unsupported("open_clip", why)
    high_wide = _sides(data.size if data.size is not None else list(size), "size")
    return Preprocess(
        high_wide,
        high_wide,
        "bilinear" if data.interpolation == "bilinear" else "bicubic",
        _three(data.mean),
        _three(data.std),
        squash=data.resize_mode == "squash",
    )


def _each(values: Any, channels: int) -> tuple[float, ...]:
    """One number a channel: of one channel the mean of three, as timm's loader makes images of three grey."""
    found = _three(values) if channels == 3 else tuple(values)
    if len(found) == channels or len(set(found)) > 1:
        return found
    return found[:1] * channels


def _three(values: Any) -> tuple[float, ...]:
    """One number stands for all channels, as in the libraries."""
    if isinstance(values, (int, float)):
        return (float(values),) * 3
    return tuple(values) * 3 if len(values) == 1 else tuple(values)


def _sides(size: Any, name: str) -> int | tuple[int, int]:
    """Pixels, of both sides or (height, width): 224, {"shortest_edge": 224} or {"height": 224, "width": 224}."""
    if isinstance(size, dict) and size.get("height") and size.get("width"):
        return size["height"], size["width"]
    values = list(size.values()) if isinstance(size, dict) else size if isinstance(size, list) else [size]
    sides = [v for v in values if v is not None]
    if len(set(sides)) != 1 and not (isinstance(size, list) and len(sides) == 2):
        raise _unsupported("Hugging Face", f"{name} {size} is no size")
    return sides[0] if len(set(sides)) == 1 else (sides[0], sides[1])


def _unsupported(library: str, why: str) -> VitedgeError:
    return VitedgeError(f"{library}'s preprocessing can't be taken over: {why}.", "", _TODO)
