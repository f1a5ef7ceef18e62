"""The preprocessing that a checkpoint's own library describes, as a `Preprocess`.

None of these libraries is imported: their configurations are dictionaries, or objects with plain attributes.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vitedge import documents
from vitedge.data.preprocess import Preprocess
from vitedge.data.processor import (
    OPENAI_MEAN,
    OPENAI_STD,
    TODO,
    Number,
    from_huggingface,
    pixels,
    three,
    unsupported,
)

__all__ = ["from_huggingface", "from_open_clip", "from_timm", "from_torchvision"]


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
        raise unsupported("torchvision", f"they have no {error.name}") from error


class TimmData(BaseModel):
    """timm's `pretrained_cfg`: what it says of images."""

    model_config = ConfigDict(extra="ignore")
    input_size: tuple[Number, Number, Number] = (3, 224, 224)
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values


def from_timm(config: Any, name: str = "pretrained_cfg") -> Preprocess:
    """Of a timm `pretrained_cfg` (`model.pretrained_cfg`), or of a timm `config.json` that holds one.

    Defaults and rounding as in timm.data.resolve_data_config and transforms_factory.transforms_imagenet_eval. For one
    channel timm's datasets read images in Pillow's mode "L".
    """
    inner = config.get("pretrained_cfg", config) if isinstance(config, dict) else config
    data = documents.validate(inner, TimmData, name, todo=TODO)
    if data.crop_mode not in ("center", "squash"):
        raise unsupported("timm", f"crop_mode {data.crop_mode!r} pads the image")
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


class OpenClipData(BaseModel):
    """open_clip's `preprocess_cfg`."""

    model_config = ConfigDict(extra="ignore")
    size: Number | list[Number] | None = None
    mode: str = "RGB"
    mean: list[float] | float = list(OPENAI_MEAN)
    std: list[float] | float = list(OPENAI_STD)
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


def from_open_clip(config: Any, size: tuple[int, int], name: str = "preprocess_cfg") -> Preprocess:
    """Of open_clip's `preprocess_cfg`; `size`: of the model's images, where it names none."""
    values = {k: v for k, v in config.items() if v is not None} if isinstance(config, dict) else config
    data = documents.validate(values, OpenClipData, name, todo=TODO)
    if data.resize_mode not in ("shortest", "squash") or data.mode != "RGB":
        why = f"mode {data.mode}" if data.mode != "RGB" else f"resize_mode {data.resize_mode!r} pads the image"
        raise unsupported("open_clip", why)
    high_wide = pixels(data.size if data.size is not None else list(size), "size")
    return Preprocess(
        high_wide,
        high_wide,
        "bilinear" if data.interpolation == "bilinear" else "bicubic",
        three(data.mean),
        three(data.std),
        squash=data.resize_mode == "squash",
    )


def _each(values: Any, channels: int) -> tuple[float, ...]:
    """One number a channel: of one channel the mean of three, as timm's loader makes images of three grey."""
    found = three(values) if channels == 3 else tuple(values)
    if len(found) == channels or len(set(found)) > 1:
        return found
    return found[:1] * channels
