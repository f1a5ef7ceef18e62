"""`--verify`: the same weights in the source's own library, on a few images, equal to 1e-4, or an error."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError, missing_package
from vitedge.vit.architecture import Architecture
from vitedge.vit.checkpoint.channels import in_rgb
from vitedge.vit.checkpoint.reference_models import MODELS, PACKAGES, Transform, rounding, source_transform
from vitedge.vit.checkpoint.save import build_model
from vitedge.vit.config import ViTConfig

if TYPE_CHECKING:
    from vitedge.vit.checkpoint.load import LoadedModel

TOLERANCE = 1e-4
_SIZES = ((1.0, 1.0), (1.9, 1.2), (1.1, 1.7), (0.8, 0.9))  # of the images, in units of the crop


@dataclass(frozen=True)
class Reference:
    """Where a model came from, for building it again in its own library.

    Attributes:
        library: "torchvision", "timm", "Hugging Face" or "open_clip".
        tensors: by the library's names.
        config: what vitedge read out of them.
        folder: where the file lies.
        described: path of the config.json that describes it, or "".
        architecture: timm's name of it, or "".
        own_preprocess: the preprocessing is not the library's but a preprocess.json beside it.
        transform: the library's preprocessing, where it is known already.
        family: it was read by `families`, as the library's own class of its description.
        as_read: configuration, tensors and preprocessing before another resolution, output or order of channels, which
            the library has not; None where nothing changed.
    """

    library: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    config: ViTConfig
    folder: Path
    described: str = ""
    architecture: str = ""
    own_preprocess: bool = False
    transform: Transform | None = None
    family: bool = False
    as_read: tuple[ViTConfig, Mapping[str, Tensor], Preprocess] | None = field(default=None, repr=False)


def can_verify(reference: Reference | None) -> bool:
    """Whether the source's library is installed and has a class for this model."""
    if reference is None or (not reference.family and len({b.hidden for b in reference.config.blocks}) != 1):
        return False
    return importlib.util.find_spec(PACKAGES[reference.library]) is not None


def check(loaded: LoadedModel, asked: bool | None, *, overridden: bool) -> LoadedModel:
    """The model, with a note of what was compared. Raises VitedgeError where it is not what its library computes.

    asked: `--verify`, `--no-verify`, or neither: then it is compared where the library is installed.
    """
    if asked is False or (asked is None and not can_verify(loaded.reference)):
        return loaded
    if loaded.reference is None:
        raise VitedgeError(
            f"'{loaded.origin}' can't be verified.",
            "It did not come from torchvision, timm, transformers or open_clip, which could compute it again.",
            "Leave --verify out.",
        )
    note = verify(loaded.model, loaded.preprocess, loaded.reference, overridden=overridden)
    return replace(loaded, notes=(*loaded.notes, note))


def verify(model: Architecture, preprocess: Preprocess, reference: Reference, *, overridden: bool = False) -> str:
    """What was compared, in words. Raises VitedgeError where logits differ by more than 1e-4 of their range.

    overridden: the user's `--preprocess` goes before the source's, so only the model is compared.
    """
    package = PACKAGES[reference.library]
    if importlib.util.find_spec(package) is None:
        raise missing_package(package, "dev", "--verify")
    where, channels, rgb = "", 3, preprocess
    if reference.as_read is not None:
        config, state, preprocess = reference.as_read
        channels = config.channels
        config, state, rgb = in_rgb(config, dict(state), preprocess)
        model, where = build_model(config, state), ", as the file has it"
    try:
        theirs = MODELS[reference.library](reference).eval()
        transform = None if overridden or reference.own_preprocess else source_transform(reference)
    except VitedgeError:
        raise
    except Exception as error:  # another version of the library may not know the model
        return f"not verified: {package} can't build the model ({str(error).splitlines()[0][:200]})"
    if preprocess.bands != 3:
        return f"not verified: there are no drawn images of {preprocess.bands} channels"
    images = drawn_images(max(preprocess.size))
    ours = torch.from_numpy(rgb.normalize(np.stack([rgb.apply(image) for image in images])))
    as_theirs = ours.flip(1) if preprocess.channels == "bgr" else ours[:, :channels]
    inputs = as_theirs
    if transform is not None:
        try:
            inputs = torch.stack([transform(image.convert("L") if channels == 1 else image) for image in images])
        except Exception as error:  # its own description may be one that the library does not take
            return f"not verified: {package} can't prepare images ({str(error).splitlines()[0][:200]})"
    near = TOLERANCE + (rounding(reference, preprocess) if transform is not None else 0)
    if inputs.shape != as_theirs.shape or (inputs - as_theirs).abs().max() > near:
        detail = f"shapes {tuple(inputs.shape)} and {tuple(as_theirs.shape)}"
        if inputs.shape == as_theirs.shape:
            detail = f"values that reach the model differ by up to {(inputs - as_theirs).abs().max():.3g}"
        raise _differs(f"Images are not prepared as {package} prepares them.", detail)
    with torch.inference_mode():
        x = inputs.flip(1) if preprocess.channels == "bgr" else inputs.expand(-1, model.config.channels, -1, -1)
        found, wanted = model(x), theirs(inputs)
    spread = float(wanted.max() - wanted.min()) or 1.0
    difference = float((found - wanted).abs().max()) if found.shape == wanted.shape else float("inf")
    what = "logits" if reference.config.activation != "none" else "embeddings"
    if not difference <= TOLERANCE * spread:
        raise _differs(
            f"The model as read does not compute what {package} computes with these weights.",
            f"{what.capitalize()} differ by up to {difference:.3g}, of a range of {spread:.3g}",
        )
    compared = f"preprocessing and {what}" if transform is not None else what
    count = f"{len(images)} drawn images{where}"
    return f"verified: {compared} of {count} equal {package}'s (largest difference {difference:.1e})"


def _differs(what: str, why: str) -> VitedgeError:
    return VitedgeError(
        what,
        f"{why}, on {len(_SIZES)} drawn images.",
        "Check what was given beside --model (--heads, --norm-eps, a config.json that was edited); "
        "--no-verify goes on with the model as read.",
        exit_code=1,
    )


def drawn_images(side: int) -> list[Image.Image]:
    """A few RGB images of soft colours and hard edges, square and oblong; always the same."""
    generator = np.random.default_rng(0)
    images = []
    for wide, high in _SIZES:
        coarse = generator.integers(0, 256, (5, 7, 3), np.uint8)
        size = (max(8, round(wide * side)), max(8, round(high * side)))
        pixels = np.array(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        pixels[size[1] // 3 : size[1] // 2, size[0] // 4 : size[0] // 2] = generator.integers(0, 256, 3)
        images.append(Image.fromarray(pixels))
    return images
