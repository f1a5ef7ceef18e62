"""torchvision's ViTs by name, with their published weights or with random ones."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

from vitedge.data import preprocess as pp
from vitedge.data import preprocess_sources as sources
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint.convert import from_library
from vitedge.vit.config import ViTConfig, uniform
from vitedge.vit.model import VisionTransformer, init_weights

# Name -> (patch, width, depth, heads, hidden); torchvision's five, and the two small ones of DeiT and AugReg.
SIZES = {
    "vit_b_16": (16, 768, 12, 12, 3072),
    "vit_b_32": (32, 768, 12, 12, 3072),
    "vit_l_16": (16, 1024, 24, 16, 4096),
    "vit_l_32": (32, 1024, 24, 16, 4096),
    "vit_h_14": (14, 1280, 32, 16, 5120),
    "vit_s_16": (16, 384, 12, 6, 1536),
    "vit_ti_16": (16, 192, 12, 3, 768),
}
RANDOM = "random:"

Loaded = tuple[ViTConfig, dict[str, Tensor], Preprocess, list[str] | None, bool]


def dense_config(name: str, *, image_size: int = 224, classes: int = 1000) -> ViTConfig:
    """The configuration of the ViT of that name. Raises VitedgeError for an unknown one."""
    if name not in SIZES:
        raise VitedgeError(
            f"There is no model '{name}'.",
            "It is neither a file, nor a folder, nor a name that is known.",
            f"Names: {', '.join(SIZES)}; or give a checkpoint's path.",
        )
    patch, width, depth, heads, hidden = SIZES[name]
    return uniform(
        image_size=image_size,
        patch_size=patch,
        width=width,
        depth=depth,
        heads=heads,
        hidden=hidden,
        classes=classes,
    )


def random_model(name: str, seed: int = 0) -> VisionTransformer:
    """A ViT of that name with random weights, in eval mode: for speed and size only."""
    return init_weights(VisionTransformer(dense_config(name)), seed).eval()


def load(source: str) -> Loaded:
    """`NAME` (torchvision's default weights), `NAME:WEIGHTS` (one of torchvision's others) or `random:NAME`."""
    if source.startswith(RANDOM):
        model = random_model(source.removeprefix(RANDOM))
        return model.config, dict(model.state_dict()), pp.PRESETS["imagenet"], None, True
    name, _, variant = source.partition(":")
    dense_config(name)
    return _torchvision(name, variant or "DEFAULT")


def _torchvision(name: str, variant: str) -> Loaded:
    import torchvision

    try:
        enum = torchvision.models.get_model_weights(name)
    except ValueError as error:
        raise VitedgeError(
            f"torchvision has no weights of '{name}'.", "", f"Give a checkpoint's path, or {RANDOM}{name}."
        ) from error
    if variant not in enum.__members__:
        raise VitedgeError(
            f"torchvision has no weights '{variant}' of '{name}'.",
            "",
            f"Choose one of: {', '.join(enum.__members__)}.",
        )
    weights = enum[variant]
    try:
        tensors = torch.hub.load_state_dict_from_url(
            weights.url, map_location="cpu", check_hash=True, weights_only=True
        )
    except (URLError, OSError, RuntimeError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise VitedgeError(
            f"The weights of '{name}' could not be downloaded.",
            f"{weights.url}: {error}",
            f"Download that file on a machine with a network and give it with --model FILE --preprocess imagenet, "
            f"or put it at {cache}. For speed and size alone: --model {RANDOM}{name}.",
            exit_code=1,
        ) from error
    config, state, _ = from_library(tensors)
    prep = sources.from_torchvision(weights.transforms())
    return config, state, prep, list(weights.meta["categories"]), False
