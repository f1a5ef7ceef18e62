"""Models out: vitedge's own folder, and torchvision's names."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from vitedge import documents
from vitedge.errors import VitedgeError
from vitedge.files import write_bytes, write_json
from vitedge.vit.architecture import Architecture
from vitedge.vit.checkpoint.convert import to_library
from vitedge.vit.checkpoint.files import read_tensors
from vitedge.vit.checkpoint.layout import TORCHVISION
from vitedge.vit.config import ViTConfig
from vitedge.vit.model import VisionTransformer

_COMPLETE = "Give a complete model folder: model.safetensors, arch.json, preprocess.json."


def save_model(folder: Path, model: Architecture) -> None:
    """Writes `model.safetensors` and `arch.json` into the folder, each atomically."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    write_bytes(folder / "model.safetensors", to_bytes(state))
    write_json(folder / "arch.json", model.config.to_dict())


def read_model(folder: Path) -> Architecture:
    """The inverse of `save_model`; the model is in eval mode. Raises VitedgeError."""
    return build_model(read_config(folder), read_tensors(folder / "model.safetensors"))


def read_config(folder: Path) -> ViTConfig:
    """The configuration in a model folder's `arch.json`. Raises VitedgeError."""
    path = folder / "arch.json"
    return ViTConfig.from_dict(documents.read_json(path, todo=_COMPLETE), str(path))


def build_model(config: ViTConfig, state: dict[str, Tensor]) -> Architecture:
    """A model in eval mode with these weights; raises VitedgeError where they don't fit the configuration."""
    with torch.device("meta"):
        model = VisionTransformer(config)
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in state.items()}
    wrong = [
        f"{k} is {found.get(k, 'missing')}, not {wanted.get(k, 'known')}"
        for k in sorted(wanted.keys() | found.keys())
        if found.get(k) != wanted.get(k)
    ]
    if wrong:
        raise VitedgeError(
            f"The weights do not fit the architecture, in {len(wrong)} tensors.",
            "; ".join(wrong[:3]) + ".",
            "Give the arch.json that was saved with them.",
        )
    model.load_state_dict(state, assign=True)
    return model.eval()


def to_torchvision(model: Architecture) -> dict[str, Tensor]:
    """State dict under torchvision's names, for `torchvision.models.VisionTransformer`.

    The attention scale is put back if it was folded into q. Raises VitedgeError for a pruned model, which
    torchvision's class can't hold.
    """
    config = model.config
    first = config.blocks[0]
    dense = config.stem is None and all(
        not (b.register or b.marker)
        and b.heads == first.heads
        and b.hidden == first.hidden
        and b.qk_dim == b.v_dim == config.width // max(b.heads, 1)
        for b in config.blocks
    )
    if not dense:
        raise VitedgeError(
            "A pruned model, or one with registers or a stem, can't be written under torchvision's names.",
            "torchvision's VisionTransformer has one width for all layers, and nothing else.",
            "Take the vitedge model folder or the ONNX file.",
        )
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    for i, block in enumerate(config.blocks):
        factor = block.scale * block.qk_dim**0.5
        for kind in ("weight", "bias"):
            state[f"blocks.{i}.attention.q.{kind}"] *= factor
    return to_library(TORCHVISION, state, len(config.blocks))
