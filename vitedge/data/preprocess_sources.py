"""The preprocessing that a checkpoint's own library describes, as a `Preprocess`.

None of these libraries is imported: their configurations are dictionaries, or objects with plain attributes.
"""

from __future__ import annotations

import math
from typing import Any

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError

_TODO = "Pass --preprocess FILE with a preprocess.json that does what the model was trained with."

# PIL.Image.Resampling, by number, as Hugging Face writes it.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


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


def from_timm(config: dict[str, Any]) -> Preprocess:
    """Of a timm `pretrained_cfg` (`model.pretrained_cfg`), or of a timm `config.json` that holds one.

    Defaults and rounding as in timm.data.resolve_data_config and transforms_factory.transforms_imagenet_eval.
    """
    config = config.get("pretrained_cfg", config)
    if not isinstance(config, dict):
        raise _unsupported("timm", "pretrained_cfg is no JSON object")
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise _unsupported("timm", f"crop_mode {mode!r} pads the image")
    size = tuple(config.get("input_size") or (3, 224, 224))
    if len(size) != 3 or size[1] != size[2]:
        raise _unsupported("timm", f"input_size {size} is not square")
    return Preprocess(
        math.floor(size[1] / (config.get("crop_pct") or 0.875)),
        size[1],
        config.get("interpolation") or "bicubic",
        tuple(config.get("mean") or (0.485, 0.456, 0.406)),
        tuple(config.get("std") or (0.229, 0.224, 0.225)),
        squash=mode == "squash",
    )


def from_huggingface(config: dict[str, Any]) -> Preprocess:
    """Of a Hugging Face `preprocessor_config.json` of the ViT and DeiT family.

    `size` given as one number or as height and width squashes the image to a square (ViTImageProcessor);
    `shortest_edge` keeps its aspect. `rescale_factor` and a switched-off normalisation are folded into mean
    and std, which hold for values in [0, 1].
    """
    if not config.get("do_resize", True):
        raise _unsupported("Hugging Face", "do_resize is off, so images of any size reach the model")
    size = config.get("size", 224)
    squash = not (isinstance(size, dict) and "shortest_edge" in size)
    resize = _side(size, "size")
    cropped = config.get("do_center_crop", "crop_size" in config)
    if not cropped and not squash:
        raise _unsupported("Hugging Face", "shortest_edge without do_center_crop leaves oblong images")
    resample = config.get("resample", 2)
    # x * factor is what gets normalised, where Preprocess has x / 255.
    factor = 255 * (config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1)
    normalised = config.get("do_normalize", True)
    mean = config.get("image_mean", [0.5] * 3) if normalised else [0.0] * 3
    std = config.get("image_std", [0.5] * 3) if normalised else [1.0] * 3
    if abs(factor - 1) > 1e-6:  # 1/255 is written with as few as eight digits
        mean, std = [value / factor for value in mean], [value / factor for value in std]
    return Preprocess(
        resize,
        _side(config.get("crop_size", resize), "crop_size") if cropped else resize,
        _RESAMPLE.get(resample, resample),
        tuple(mean),
        tuple(std),
        squash=squash,
    )


def _side(size: Any, name: str) -> int:
    """The side in pixels of Hugging Face's 224, {"shortest_edge": 224} or {"height": 224, "width": 224}."""
    sides = set(size.values()) if isinstance(size, dict) else {size}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise _unsupported("Hugging Face", f"{name} {size} is not one square size")
    return side


def _unsupported(library: str, why: str) -> VitedgeError:
    return VitedgeError(f"{library}'s preprocessing can't be taken over: {why}.", "", _TODO)
