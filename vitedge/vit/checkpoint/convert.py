"""Tensors by a library's names to our configuration and state dict, and back."""

from __future__ import annotations

import difflib

import torch
from torch import Tensor

from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint.layout import LAYOUTS, Layout
from vitedge.vit.config import ViTConfig, uniform

# Heads of the published ViTs by width (arXiv 2010.11929, 2106.04560): shapes can't tell them.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}


def _listing(names: list[str], limit: int = 6) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def find_layout(keys: list[str]) -> Layout:
    """The layout that knows most of the keys; raises VitedgeError where none knows the half of them."""
    best, share = LAYOUTS[0], -1.0
    for layout in LAYOUTS:
        renamed = {layout.rename(k) for k in keys}
        expected = layout.expected(max(1, layout.depth(sorted(renamed))))
        found = len(renamed & set(expected)) / max(len(expected), 1)
        if found > share:
            best, share = layout, found
    if share < 0.5:
        raise VitedgeError(
            "This is not the checkpoint of a Vision Transformer for classification.",
            f"Of the nearest layout ({best.name}) only {share:.0%} of the tensors are there; "
            f"the file holds, for example, {_listing(sorted(keys), 4)}.",
            "Give a state dict of torchvision's or timm's VisionTransformer, or of Hugging Face's "
            "ViTForImageClassification.",
        )
    return best


def _check_keys(layout: Layout, tensors: dict[str, Tensor], expected: dict[str, tuple[str, ...]]) -> None:
    for key in tensors:
        for prefix, meaning in layout.refused.items():
            if key.startswith(prefix):
                raise VitedgeError(
                    f"This {layout.name} checkpoint has {meaning} ('{key}').",
                    "vitedge takes the plain ViT with a [CLS] token and one linear head.",
                    "Choose a model of that family.",
                )
    scales = set(layout.layer_scale.values())
    # A missing bias is a layer without one (qkv_bias=False); a missing weight is a damaged file.
    missing = [k for k in expected if k not in tensors and not k.endswith("bias")]
    unknown = [k for k in tensors if k not in expected and not any(k.endswith("." + s) for s in scales)]
    if not missing and not unknown:
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors are missing: {_listing(missing)}.")
    if unknown:
        parts.append(f"{len(unknown)} are not known: {_listing(unknown)}.")
        near = [(u, difflib.get_close_matches(u, missing, 1, 0.8)) for u in unknown[:3]]
        parts += [f"'{u}' looks like '{n[0]}'." for u, n in near if n]
    raise VitedgeError(
        f"The checkpoint does not fit; its nearest layout is {layout.name}'s.",
        " ".join(parts),
        "Give the whole state dict of one ViT, as the library saved it.",
    )


def infer_config(
    state: dict[str, Tensor], depth: int, heads: int | None, norm_eps: float, activation: str
) -> ViTConfig:
    """The configuration that the shapes tell; `heads` where they can't."""
    width, channels, patch, patch_w = state["patch_embed.weight"].shape
    grid = round((state["pos_embedding"].shape[1] - 1) ** 0.5)
    if patch != patch_w or grid**2 + 1 != state["pos_embedding"].shape[1]:
        raise VitedgeError(
            "The model's patches or its grid of positions are not square.",
            f"Patch {patch}x{patch_w}, {state['pos_embedding'].shape[1]} positions.",
            "Only square patches and images are supported.",
        )
    heads = heads or _HEADS.get(width) or (width // 64 if width % 64 == 0 else None)
    if heads is None:
        raise VitedgeError(
            f"The number of heads of a ViT of width {width} can't be told from its shapes.",
            "",
            "Give it with --heads.",
        )
    return uniform(
        image_size=grid * patch,
        patch_size=patch,
        channels=channels,
        width=width,
        depth=depth,
        heads=heads,
        hidden=state["blocks.0.mlp.fc1.weight"].shape[0],
        classes=state["head.weight"].shape[0],
        norm_eps=norm_eps,
        activation=activation,  # type: ignore[arg-type]
    )


def from_library(
    tensors: dict[str, Tensor],
    *,
    heads: int | None = None,
    norm_eps: float = 1e-6,
    activation: str = "softmax",
) -> tuple[ViTConfig, dict[str, Tensor], Layout]:
    """A library's state dict -> (configuration, our state dict in float32, the layout it was in).

    Raises VitedgeError where keys are missing or not known, or a weight is not finite.
    """
    layout = find_layout(list(tensors))
    tensors = {layout.rename(k): v for k, v in tensors.items()}
    depth = layout.depth(list(tensors))
    expected = layout.expected(depth)
    _check_keys(layout, tensors, expected)
    check_finite(tensors)
    state: dict[str, Tensor] = {}
    for theirs, ours in expected.items():
        if theirs in tensors:
            chunks = tensors[theirs].to(torch.float32).chunk(len(ours), dim=0)
            state |= {name: chunk.clone() for name, chunk in zip(ours, chunks, strict=True)}
    for ours_layer, theirs_scale in layout.layer_scale.items():
        for i in range(depth):
            scale = tensors.get(f"{layout.block.format(i=i)}{theirs_scale}")
            if scale is not None:
                key = f"blocks.{i}.{ours_layer}"
                state[f"{key}.weight"] *= scale.float()[:, None]
                state[f"{key}.bias"] *= scale.float()
    for name in (name for names in expected.values() for name in names):
        if name not in state and name.endswith(".bias"):
            state[name] = torch.zeros(len(state[name.replace(".bias", ".weight")]))
    return infer_config(state, depth, heads, norm_eps, activation), state, layout


def to_library(layout: Layout, state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Our state dict by a library's names, q, k and v fused where it wants that."""
    return {
        theirs: torch.cat([state[name] for name in ours]) if len(ours) > 1 else state[ours[0]].clone()
        for theirs, ours in layout.expected(depth).items()
    }


def check_finite(tensors: dict[str, Tensor]) -> None:
    """Raises VitedgeError that names the tensors holding NaN or infinity."""
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise VitedgeError(
            f"The weights hold NaN or infinity, in {len(bad)} tensors: {_listing(bad)}.",
            "A model with such weights computes nothing but NaN.",
            "Take a checkpoint from before the training diverged.",
        )
