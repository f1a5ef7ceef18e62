"""torchvision's ViTs and Swins by name, with their published weights or with random ones."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

from vitedge.data import preprocess as pp
from vitedge.data import preprocess_sources as sources
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint.convert import from_library
from vitedge.vit.checkpoint.families import swin
from vitedge.vit.checkpoint.kinds import SUFFIXES
from vitedge.vit.checkpoint.reference import Reference
from vitedge.vit.config import ViTConfig, uniform
from vitedge.vit.model import VisionTransformer, random_weights

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
NAMES = (*SIZES, *swin.SIZES)
RANDOM = "random:"

Loaded = tuple[ViTConfig, dict[str, Tensor], Preprocess, list[str] | None, bool, Reference | None]
_TIMM_NAME = re.compile(
    r"(?:hf-hub:|hf_hub:|timm/)*((?:vit|deit|deit3|eva02|eva|beit|swin)_\w*patch\d\w*|pvt_v2_b\d\w*)(\.[\w]+)?"
)
_HUB_ID = re.compile(r"(?:hf-hub:|hf_hub:)?[\w.-]+/[\w.-]+")


def not_there(source: str) -> VitedgeError:
    """The error for a `--model` that is neither there nor known: how to get a model of that name."""
    why = "It is neither a file, nor a folder, nor a name that is known."
    if "://" in source:
        return VitedgeError(
            f"There is no model '{source}'.", "Addresses are not downloaded.", "Download it, and give the file."
        )
    if found := _TIMM_NAME.fullmatch(source):
        name = found[1] + (found[2] or "")
        save = f"timm.models.save_for_hf(timm.create_model('{name}', pretrained=True), 'DIR')"
        return VitedgeError(
            f"There is no model '{source}'.",
            f"{why} It looks like a name of timm's.",
            f"Download it: --model timm:{name}. Without a network here, save it once with timm: "
            f'python -c "import timm; {save}", then give --model DIR.',
        )
    if _HUB_ID.fullmatch(source) and not source.startswith(".") and Path(source).suffix not in SUFFIXES:
        name = source.removeprefix("hf-hub:").removeprefix("hf_hub:")
        return VitedgeError(
            f"There is no model '{source}'.",
            f"{why} It looks like a model of Hugging Face's hub.",
            f"If it is one: --model hf:{name}. Without a network here: hf download {name} --local-dir DIR, then give "
            "--model DIR.",
        )
    if "/" in source or source.startswith(".") or Path(source).suffix in SUFFIXES:
        return VitedgeError(f"There is no model '{source}'.", "", "Give a file or a folder that exists.")
    near = difflib.get_close_matches(source, NAMES, 1)
    return VitedgeError(
        f"There is no model '{source}'.",
        f"{why} Did you mean '{near[0]}'?" if near else why,
        f"Names: {', '.join(NAMES)}; or give a checkpoint's path.",
    )


def dense_config(name: str, *, image_size: int = 224, classes: int = 1000) -> ViTConfig:
    """The configuration of the model of that name. Raises VitedgeError for an unknown one."""
    if name in swin.SIZES:
        return swin.dense_config(name, classes)
    if name not in SIZES:
        raise not_there(name)
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
    return random_weights(dense_config(name), seed)


def load(source: str) -> Loaded:
    """`NAME` (torchvision's default weights), `NAME:WEIGHTS` (one of torchvision's others) or `random:NAME`."""
    if source.startswith(RANDOM):
        model = random_model(source.removeprefix(RANDOM))
        return model.config, dict(model.state_dict()), pp.PRESETS["imagenet"], None, True, None
    name, _, variant = source.partition(":")
    dense_config(name)
    return _torchvision(name, variant or "DEFAULT")


def _torchvision(name: str, variant: str) -> Loaded:
    import torchvision

    try:
        enum = torchvision.models.get_model_weights(name)
    except ValueError as error:
        raise VitedgeError(
            f"torchvision has no weights of '{name}'.",
            "It has them of vit_b_16, vit_b_32, vit_l_16, vit_l_32, vit_h_14, and of all its Swins.",
            f"Give a checkpoint's path; for speed and size alone: --model {RANDOM}{name}.",
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
    family = name in swin.SIZES
    if family:
        read = swin.read_torchvision(tensors)
        config, state = read.config, read.state
    else:
        config, state, _ = from_library(tensors)
    transform = weights.transforms()
    reference = Reference("torchvision", tensors, config, Path(), transform=transform, family=family)
    return config, state, sources.from_torchvision(transform), list(weights.meta["categories"]), False, reference
