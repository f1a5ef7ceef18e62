"""Tensors taken one by one under a library's names, into our state dict."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitedge.errors import VitedgeError
from vitedge.vit.block import BlockConfig
from vitedge.vit.checkpoint.files import listing
from vitedge.vit.config import ViTConfig, sides

# Names of an activation in configurations -> ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


@dataclass(frozen=True)
class Read:
    """A model out of a checkpoint: its configuration, our state dict in float32, and what it came from, for people.

    any_size: the source takes images of another size than its positions were trained for, and interpolates these
        (bicubic, without antialiasing), so that the size of the preprocessing counts.
    """

    config: ViTConfig
    state: dict[str, Tensor]
    origin: str
    any_size: bool = False


def refuse(library: str, meaning: str) -> VitedgeError:
    """The error for a model of a known family with a part that the architecture has not."""
    return VitedgeError(
        f"This {library} checkpoint has {meaning}.",
        "The architecture of vitedge has no such part, and without it every output would be wrong.",
        "Choose another model of that family.",
    )


def activation(library: str, name: str, *, gated: bool = False) -> str:
    """Our name of an MLP's activation. Raises VitedgeError where it is none that the architecture has."""
    if gated:
        if name not in ("silu", "swish"):
            raise refuse(library, f"a gated MLP with {name!r}")
        return "swiglu"
    if name not in ACTIVATIONS:
        raise refuse(library, f"{name!r} in its MLPs")
    return ACTIVATIONS[name]


class Tensors:
    """A checkpoint's tensors by its library's names; what is taken goes into `state` under ours.

    Args:
        library: what errors call it.
        tensors: those that do not belong to the image tower are dropped by `ignore`.
        ignore: patterns of names that never reach the output.
    """

    def __init__(self, library: str, tensors: Mapping[str, Tensor], ignore: tuple[str, ...] = ()) -> None:
        self.library = library
        self.left = {k: v for k, v in tensors.items() if not any(re.search(p, k) for p in ignore)}
        self.state: dict[str, Tensor] = {}
        self.missing: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def depth(self, pattern: str) -> int:
        """One more than the highest number that stands for `#` in the names of `pattern`."""
        found = [re.match(re.escape(pattern).replace(r"\#", r"(\d{1,4})"), name) for name in self.left]
        return max((int(m[1]) + 1 for m in found if m), default=0)

    def take(self, name: str) -> Tensor:
        """The tensor of that name, float32; what is missing is remembered, and a scalar stands for it."""
        if name not in self.left:
            self.missing.append(name)
            return torch.zeros(1)
        return self.left.pop(name).to(torch.float32).clone()

    def linear(self, ours: str, theirs: str, scale: Tensor | None = None) -> None:
        """A Linear or convolution, its bias zero where there is none; each output times `scale` (LayerScale)."""
        weight = self.take(f"{theirs}.weight")
        bias = self.take(f"{theirs}.bias") if f"{theirs}.bias" in self else torch.zeros(len(weight))
        if scale is not None:
            weight, bias = weight * scale.view(-1, *[1] * (weight.ndim - 1)), bias * scale
        self.state |= {f"{ours}.weight": weight, f"{ours}.bias": bias}

    def norm(self, ours: str, theirs: str) -> None:
        """A LayerNorm. Raises VitedgeError where it has no bias, as RMSNorm."""
        if f"{theirs}.weight" in self and f"{theirs}.bias" not in self:
            raise refuse(self.library, f"RMSNorm, or LayerNorm without a bias ('{theirs}' has only a weight)")
        self.state |= {f"{ours}.{kind}": self.take(f"{theirs}.{kind}") for kind in ("weight", "bias")}

    def fused(self, ours: tuple[str, ...], weight: str, bias: str | None) -> None:
        """One product of several Linears, side by side."""
        parts = self.take(weight).chunk(len(ours))
        biases = self.take(bias).chunk(len(ours)) if bias and bias in self else [torch.zeros(len(p)) for p in parts]
        for name, w, b in zip(ours, parts, biases, strict=False):
            self.state |= {f"{name}.weight": w.clone(), f"{name}.bias": b.clone()}

    def tokens(self, *names: str) -> tuple[Tensor, ...]:
        """Prefix tokens, each [1, n, C]."""
        return tuple(t if t.ndim == 3 else t.reshape(1, -1, t.shape[-1]) for t in map(self.take, names))

    def prefix(self, tokens: tuple[Tensor, ...], positions: Tensor | None, patches: int) -> None:
        """Prefix tokens, and the positions [1, n, C] of the patches, of all tokens, or of all but the registers."""
        joined = torch.cat(tokens, 1) if tokens else None
        if joined is not None:
            self.state["class_token"] = joined
        if positions is None:
            return
        count, own = joined.shape[1] if joined is not None else 0, positions.shape[1] - patches
        zeros = positions.new_zeros(1, count - max(own, 0), positions.shape[2])
        self.state["pos_embedding"] = torch.cat([positions[:, :own], zeros, positions[:, own:]], 1)

    def identity_head(self, width: int) -> None:
        """No classifier: the embedding as it is."""
        self.state |= {"head.weight": torch.eye(width), "head.bias": torch.zeros(width)}

    def finish(self, config: ViTConfig) -> Read:
        """What was read. Raises VitedgeError where tensors are missing, or some were not taken."""
        if self.missing or self.left:
            unknown = sorted(self.left)
            parts = [f"{len(self.missing)} tensors are missing: {listing(self.missing)}."] if self.missing else []
            if unknown:
                parts.append(f"{len(unknown)} are not known: {listing(unknown)}.")
                near = [(u, difflib.get_close_matches(u, self.missing, 1, 0.8)) for u in unknown[:3]]
                parts += [f"'{u}' looks like '{n[0]}'." for u, n in near if n]
            raise VitedgeError(
                f"The checkpoint does not fit; its nearest layout is that of {self.library}.",
                " ".join(parts),
                "Give the whole state dict of one model, as the library saved it.",
            )
        return Read(config, self.state, self.library)


def grid_of(patches: int, image_size: Any, patch: int) -> tuple[int, int]:
    """(height, width) in pixels of an image with so many patches; `image_size` as its description gives it, or None."""
    if image_size is not None:
        height, width = (int(side) for side in sides(image_size))
        if (height // patch) * (width // patch) == patches:
            return height, width
    side = math.isqrt(patches)
    if side * side != patches:
        raise VitedgeError(
            f"{patches} positions are no square grid.",
            "Which rows and columns they are is in the model's own description.",
            "Put the config.json beside the weights that was saved with them.",
        )
    return side * patch, side * patch


def block_config(width: int, heads: int, hidden: int, **own: Any) -> BlockConfig:
    """A dense block."""
    if heads < 1 or width % heads:
        raise VitedgeError(f"{heads} heads do not divide the width {width}.", "", "Give the right number with --heads.")
    dim = width // heads
    return BlockConfig(heads=heads, qk_dim=dim, v_dim=dim, hidden=hidden, scale=dim**-0.5, **own)
