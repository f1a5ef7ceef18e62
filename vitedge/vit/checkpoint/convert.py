"""Tensors by a library's names to our configuration and state dict, and back."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint import plain
from vitedge.vit.checkpoint.files import check_tensors, listing
from vitedge.vit.checkpoint.layout import LAYOUTS, Layout
from vitedge.vit.config import ViTConfig, uniform

# (width, blocks, MLP units) of the published ViTs -> name and heads (arXiv 2010.11929, 2106.04560, 2106.10270).
PUBLISHED = {
    (192, 12, 768): ("ViT-Ti", 3),
    (384, 12, 1536): ("ViT-S", 6),
    (512, 12, 2048): ("ViT-M", 8),
    (768, 12, 3072): ("ViT-B", 12),
    (1024, 24, 4096): ("ViT-L", 16),
    (1280, 32, 5120): ("ViT-H", 16),
    (1408, 40, 6144): ("ViT-g", 16),
    (1664, 48, 8192): ("ViT-G", 16),
}


def find_layout(keys: list[str]) -> Layout:
    """The layout that knows most of the keys; raises VitedgeError where none knows the half of them."""
    best, share = LAYOUTS[0], -1.0
    for layout in LAYOUTS:
        renamed = {layout.rename(k) for k in keys}
        expected = layout.expected(min(max(1, layout.depth(sorted(renamed))), len(keys)))
        found = len(renamed & set(expected)) / max(len(expected), 1)
        if found > share:
            best, share = layout, found
    if share < 0.5:
        plain.check_refused(next((each for each in LAYOUTS if each.anchor in keys), best), keys)
        raise plain.not_a_vit(keys, best.name, share)
    return best


def _check_keys(layout: Layout, tensors: dict[str, Tensor], depth: int) -> None:
    expected = layout.expected(min(depth, len(tensors)))
    plain.check_names(layout, tensors)
    scales = tuple("." + s for s in layout.layer_scale.values())
    lacking = [k for k in expected if k not in tensors]
    # A bias that misses everywhere is a layer without one (qkv_bias=False); in some blocks only, the file is damaged.
    kinds = {k: re.sub(r"\d+", "#", k, count=1) for k in expected}
    some = {kinds[k] for k in expected if k in tensors}
    missing = [k for k in lacking if not k.endswith("bias") or kinds[k] in some]
    unknown = [k for k in tensors if k not in expected and not k.endswith(scales)]
    if depth > len(tensors):
        missing.append(f"the blocks up to number {depth - 1}")
    if not missing and not unknown:
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors are missing: {listing(missing)}.")
    if unknown:
        parts.append(f"{len(unknown)} are not known: {listing(unknown)}.")
        near = [(u, difflib.get_close_matches(u, missing, 1, 0.8)) for u in unknown[:3]]
        parts += [f"'{u}' looks like '{n[0]}'." for u, n in near if n]
    raise VitedgeError(
        f"The checkpoint does not fit; its nearest layout is {layout.name}'s.",
        " ".join(parts),
        "Give the whole state dict of one ViT, as the library saved it.",
    )


def published_heads(width: int, depth: int, hidden: int) -> tuple[str, int] | None:
    """Name and number of heads of the published ViT of that shape, or None: another one can have any number."""
    return PUBLISHED.get((width, depth, hidden))


def infer_config(
    state: dict[str, Tensor],
    depth: int,
    heads: int | None,
    norm_eps: float,
    activation: Literal["softmax", "sigmoid"],
) -> ViTConfig:
    """The configuration that the shapes tell; `heads` where they can't. Raises VitedgeError where shapes disagree."""
    width, channels, patch, _ = state["patch_embed.weight"].shape
    hidden = [len(state[f"blocks.{i}.mlp.fc1.weight"]) for i in range(depth)]
    known = published_heads(width, depth, max(hidden))
    if heads is None and known is None:
        raise VitedgeError(
            f"The number of heads of a ViT of width {width} and {depth} blocks can't be told from its tensors.",
            "It is in the settings that the model was trained with; only the published sizes (ViT-Ti, S, B, L, H) are "
            "known. With a wrong number every logit is wrong.",
            "Give it with --heads N.",
        )
    grid = math.isqrt(state["pos_embedding"].shape[1] - 1)
    config = uniform(
        image_size=grid * patch,
        patch_size=patch,
        channels=channels,
        width=width,
        depth=depth,
        heads=heads or known[1],  # type: ignore[index]
        hidden=max(hidden),
        classes=state["head.weight"].shape[0],
        norm_eps=norm_eps,
        activation=activation,
    )
    blocks = tuple(replace(block, hidden=units) for block, units in zip(config.blocks, hidden, strict=True))
    return replace(config, blocks=blocks)


def _check_shapes(state: dict[str, Tensor], depth: int) -> None:
    """Raises VitedgeError where a tensor has not the shape that the others ask for."""
    patches, positions = state["patch_embed.weight"], state["pos_embedding"]
    if patches.ndim != 4 or patches.shape[2] != patches.shape[3]:
        raise plain.refuse("The checkpoint", f"a patch embedding of shape {tuple(patches.shape)}, not square")
    width, tokens = patches.shape[0], positions.shape[1] if positions.ndim == 3 else 0
    if tokens < 2 or math.isqrt(tokens - 1) ** 2 != tokens - 1:
        raise plain.refuse(
            "The checkpoint", f"positions of shape {tuple(positions.shape)}, not a square grid and [CLS]"
        )
    classes = len(state["head.weight"])
    wanted: dict[str, tuple[int, ...]] = {
        "patch_embed.bias": (width,),
        "class_token": (1, 1, width),
        "pos_embedding": (1, tokens, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }
    for i in range(depth):
        block = f"blocks.{i}."
        fc1, fc2 = (state[f"{block}mlp.{name}.weight"] for name in ("fc1", "fc2"))
        hidden = len(fc1)
        if fc2.ndim == 2 and hidden == 2 * fc2.shape[1]:
            raise plain.refuse("The checkpoint", f"a gated MLP (fc1 gives {hidden}, fc2 takes {hidden // 2})")
        q = state[f"{block}attention.q.weight"]
        if q.ndim == 2 and len(q) < width == q.shape[1]:
            raise VitedgeError(
                f"Heads of block {i} were cut by another tool: {len(q)} of {width} dimensions are left.",
                "How wide a head is can't be told from the tensors, and with another width every logit is wrong.",
                "Give the model as it was before, and prune it with vitedge: --prune.",
            )
        for part in ("attention.q", "attention.k", "attention.v", "attention.out"):
            wanted |= {f"{block}{part}.weight": (width, width), f"{block}{part}.bias": (width,)}
        for norm in ("norm1", "norm2"):
            wanted |= {f"{block}{norm}.{kind}": (width,) for kind in ("weight", "bias")}
        wanted |= {f"{block}mlp.fc1.weight": (hidden, width), f"{block}mlp.fc1.bias": (hidden,)}
        wanted |= {f"{block}mlp.fc2.weight": (width, hidden), f"{block}mlp.fc2.bias": (width,)}
    wrong = [f"{k} is {tuple(state[k].shape)}, not {s}" for k, s in wanted.items() if tuple(state[k].shape) != s]
    if wrong:
        raise VitedgeError(
            f"{len(wrong)} tensors of the checkpoint have shapes that do not fit together.",
            "; ".join(wrong[:3]) + ".",
            "Give the whole state dict of one ViT, as the library saved it.",
        )


def _unmask(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of torch.nn.utils.prune, `weight_orig` times `weight_mask`, as its forward multiplies them."""
    for name in [n for n in tensors if n.endswith("_mask") and n.removesuffix("_mask") + "_orig" in tensors]:
        plain_name = name.removesuffix("_mask")
        mask, weight = tensors.pop(name), tensors.pop(plain_name + "_orig")
        if mask.shape != weight.shape:
            raise VitedgeError(f"'{name}' has another shape than its weight.", "", "Call prune.remove() first.")
        tensors[plain_name] = weight * mask.to(weight.dtype)
    return tensors


def has_head(layout: Layout, tensors: Mapping[str, Tensor]) -> bool:
    """Whether there are tensors of a head under the library's name of it."""
    return any(layout.rename(name).startswith(layout.stem["head"] + ".") for name in tensors)


def identity(width: int) -> dict[str, Tensor]:
    """Weight and bias of a head that gives the embedding as it is."""
    return {"weight": torch.eye(width), "bias": torch.zeros(width)}


def from_library(
    tensors: dict[str, Tensor],
    *,
    heads: int | None = None,
    norm_eps: float = 1e-6,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    headless: bool = False,
) -> tuple[ViTConfig, dict[str, Tensor], Layout]:
    """A library's state dict -> (configuration, our state dict in float32, the layout it was in).

    headless: a backbone without a head is taken too, with the identity as its head.

    Raises VitedgeError where keys are missing or not known, shapes do not fit, a weight is not finite, or the model
    is no plain ViT.
    """
    plain.check_wrapped(tensors)
    layout = find_layout(list(tensors))
    tensors = _unmask({layout.rename(k): v for k, v in tensors.items()})
    tensors = {k: v for k, v in tensors.items() if not any(re.search(p, k) for p in layout.ignored)}
    depth = layout.depth(list(tensors))
    if headless and not has_head(layout, tensors):
        width = len(tensors.get(layout.stem["norm"] + ".weight", ()))
        tensors |= {f"{layout.stem['head']}.{k}": v for k, v in identity(width).items()}
    _check_keys(layout, tensors, depth)
    check_tensors(tensors)
    expected = layout.expected(depth)
    state: dict[str, Tensor] = {}
    for theirs, ours in expected.items():
        if theirs in tensors:
            if tensors[theirs].ndim == 0 or len(tensors[theirs]) % len(ours):
                raise VitedgeError(
                    f"'{theirs}' of the checkpoint has the shape {tuple(tensors[theirs].shape)}.",
                    f"It holds {len(ours)} tensors of equal size.",
                    "Give the whole state dict of one ViT, as the library saved it.",
                )
            chunks = tensors[theirs].to(torch.float32).chunk(len(ours), dim=0)
            state |= {name: chunk.clone() for name, chunk in zip(ours, chunks, strict=True)}
    for name in (name for names in expected.values() for name in names):
        if name not in state:
            state[name] = torch.zeros(len(state[name.removesuffix("bias") + "weight"]))
    _fold_layer_scale(layout, tensors, state, depth)
    positions = state["pos_embedding"]
    if positions.ndim == 3 and math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:
        # DeiT-III (arXiv 2204.07118) adds no position to [CLS]: one of zeros is the same.
        state["pos_embedding"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    _check_shapes(state, depth)
    return infer_config(state, depth, heads, norm_eps, activation), state, layout


def _fold_layer_scale(layout: Layout, tensors: dict[str, Tensor], state: dict[str, Tensor], depth: int) -> None:
    for layer, name in layout.layer_scale.items():
        scales = [tensors.get(f"{layout.block.format(i=i)}{name}") for i in range(depth)]
        if all(scale is None for scale in scales):
            continue
        for i, scale in enumerate(scales):
            weight, bias = (state[f"blocks.{i}.{layer}.{kind}"] for kind in ("weight", "bias"))
            if scale is None or scale.shape != bias.shape or len(weight) != len(bias):
                raise VitedgeError(
                    f"LayerScale '{name}' of block {i} is missing or of another shape.",
                    "Other blocks have it.",
                    "Give the whole state dict of one ViT, as the library saved it.",
                )
            weight *= scale.float().view(-1, *[1] * (weight.ndim - 1))
            bias *= scale.float()


def to_library(layout: Layout, state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Our state dict by a library's names, q, k and v fused where it wants that."""
    return {
        theirs: torch.cat([state[name] for name in ours]) if len(ours) > 1 else state[ours[0]].clone()
        for theirs, ours in layout.expected(depth).items()
    }
