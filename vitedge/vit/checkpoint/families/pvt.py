"""PVT v2 of timm (arXiv 2106.13797): overlapping patches and stages, keys and values of fewer tokens, depthwise
convolutions in the MLPs. Its tensors are read with timm's name of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from vitedge.vit.block import BlockConfig
from vitedge.vit.checkpoint.families.tensors import Read, Tensors, block_config, refuse
from vitedge.vit.checkpoint.families.timm_vit import mlp_activation
from vitedge.vit.config import ViTConfig
from vitedge.vit.geometry import Reduction, Stage
from vitedge.vit.stem import LAST, Stem, StemLayer

# The patch embedding in PVT's own release.
ANCHORS = ("patch_embed1.proj.weight",)
CLASSES = ("PyramidVisionTransformerV2",)
# timm's models take images of any size, and are not told any: this one where the description has none.
SIZE = 224
PATCH = 4


def read(tensors: Mapping[str, Tensor], model: Any, size: tuple[int, int] = (SIZE, SIZE)) -> Read:
    """timm's PyramidVisionTransformerV2; `model`: timm's, of these tensors' names. size: of the images."""
    t = Tensors(f"timm {type(model).__name__}", _renamed(tensors))
    t.linear("patch_embed", "patch_embed.proj")
    t.norm("pre_norm", "patch_embed.norm")
    blocks: list[BlockConfig] = []
    for number, stage in enumerate(model.stages):
        for i, block in enumerate(stage.blocks):
            ours, theirs = f"blocks.{len(blocks)}", f"stages.{number}.blocks.{i}"
            _block(t, ours, theirs)
            hidden, width = t.state[f"{ours}.mlp.fc1.weight"].shape
            begins = None
            if number and not i:
                begins = Stage(width, kernel=3)
                _downsample(t, f"{ours}.downsample", number)
            own = {
                "stage": begins,
                "reduction": _reduction(block.attn),
                "depthwise": True,
                "relu": isinstance(block.mlp.relu, nn.ReLU),
                "act": mlp_activation(t.library, block.mlp.act),
            }
            blocks.append(block_config(width, block.attn.num_heads, hidden, **own))
    t.norm("norm", f"stages.{len(model.stages) - 1}.norm")
    if "head.weight" in t:
        t.linear("head", "head")
    else:
        t.identity_head(len(t.state["norm.weight"]))
    if model.global_pool != "avg":
        raise refuse(t.library, f"global_pool {model.global_pool!r}")
    patch = t.state["patch_embed.weight"]
    width, channels, kernel = patch.shape[:3]
    config = ViTConfig(
        image_size=size,
        patch_size=PATCH,
        channels=channels,
        width=width,
        classes=len(t.state["head.weight"]),
        blocks=tuple(blocks),
        norm_eps=model.stages[0].norm.eps,
        conv_norm_eps=model.patch_embed.norm.eps,
        activation="softmax" if isinstance(model.head, nn.Linear) else "none",
        prefix_tokens=(),
        positions=False,
        norm_pre=True,
        pool=("mean",),
        stem=Stem((StemLayer(LAST, width, kernel, PATCH, kernel // 2),)),
    )
    return replace(t.finish(config), any_size=True)


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of PVT's own release as timm has them."""
    if "patch_embed.proj.weight" in tensors:
        return dict(tensors)
    found = {}
    for name, tensor in tensors.items():
        name = name.replace("patch_embed1.", "patch_embed.").replace("dwconv.dwconv.", "dwconv.")
        name = re.sub(r"^patch_embed(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.", name)
        name = re.sub(r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.", name)
        found[re.sub(r"^norm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.norm.", name)] = tensor
    return found


def _reduction(attention: Any) -> Reduction | None:
    if attention.pool is not None:
        side = attention.pool.output_size
        return Reduction((side, side), pooled=True)
    return Reduction(tuple(attention.sr.kernel_size)) if attention.sr is not None else None


def _downsample(t: Tensors, ours: str, stage: int) -> None:
    """What begins a stage: LayerNorm at the end of the one before, convolution, LayerNorm."""
    t.norm(f"{ours}.norm_input", f"stages.{stage - 1}.norm")
    t.linear(f"{ours}.conv", f"stages.{stage}.downsample.proj")
    t.norm(f"{ours}.norm", f"stages.{stage}.downsample.norm")


def _block(t: Tensors, ours: str, theirs: str) -> None:
    for norm in ("norm1", "norm2"):
        t.norm(f"{ours}.{norm}", f"{theirs}.{norm}")
    t.linear(f"{ours}.attention.q", f"{theirs}.attn.q")
    parts = (f"{ours}.attention.k", f"{ours}.attention.v")
    t.fused(parts, f"{theirs}.attn.kv.weight", f"{theirs}.attn.kv.bias")
    t.linear(f"{ours}.attention.out", f"{theirs}.attn.proj")
    if f"{theirs}.attn.sr.weight" in t:
        reduction = f"{ours}.attention.reduction"
        t.linear(f"{reduction}.linear", f"{theirs}.attn.sr")
        # A convolution whose kernel is its stride: a Linear of the tokens side by side, row by row.
        weight = t.state[f"{reduction}.linear.weight"]
        t.state[f"{reduction}.linear.weight"] = weight.permute(0, 2, 3, 1).flatten(1)
        t.norm(f"{reduction}.norm", f"{theirs}.attn.norm")
    for part in ("fc1", "fc2"):
        t.linear(f"{ours}.mlp.{part}", f"{theirs}.mlp.{part}")
    t.linear(f"{ours}.mlp.depthwise", f"{theirs}.mlp.dwconv")
