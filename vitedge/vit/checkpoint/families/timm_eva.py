"""timm's Eva: EVA-02 in the sizes without inner norms, and DINOv3 (arXiv 2303.11331, 2508.10104)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitedge.vit.block import Rope
from vitedge.vit.checkpoint.families.tensors import Read, Tensors, refuse
from vitedge.vit.checkpoint.families.timm_vit import check, configuration, head, norms_and_mlp, pooling

CLASSES = ("Eva",)


def read(tensors: Mapping[str, Tensor], model: Any) -> Read:
    """`model`: timm's, of these tensors' names. Raises VitedgeError for parts that the architecture has not."""
    t = Tensors("timm Eva", tensors, (r"^rope\.",))
    check(t.library, model, ("EvaAttention",))
    t.linear("patch_embed", "patch_embed.proj")
    names = [n for n in ("cls_token", "reg_token") if n in t]
    tokens, positions = t.tokens(*names), t.take("pos_embed") if model.pos_embed is not None else None
    kinds = [n.removesuffix("_token") for n, token in zip(names, tokens, strict=True) for _ in range(token.shape[1])]
    t.prefix(tokens, positions, model.patch_embed.num_patches)
    if not isinstance(model.norm_pre, nn.Identity):
        t.norm("pre_norm", "norm_pre")
    for i, block in enumerate(model.blocks):
        norms_and_mlp(t, i, block.mlp, ("gamma_1", "gamma_2"))
        _attention(t, f"blocks.{i}", block.attn)
    pooled, pool = pooling(t, model, kinds)
    head(t, model)
    table = _rope(t.library, model.rope) if model.rope is not None else None
    return t.finish(configuration(t, model, tuple(kinds), pool, pooled, table))


def _attention(t: Tensors, block: str, attention: Any) -> None:
    parts = tuple(f"{block}.attention.{part}" for part in "qkv")
    if attention.qkv is not None:
        t.fused(parts, f"{block}.attn.qkv.weight", None)
        for part, bias in zip(parts, ("q_bias", "", "v_bias"), strict=True):
            if f"{block}.attn.{bias}" in t:
                t.state[f"{part}.bias"] = t.take(f"{block}.attn.{bias}")
    else:
        for part, letter in zip(parts, "qkv", strict=True):
            t.linear(part, f"{block}.attn.{letter}_proj")
    names = [f"{part}.{kind}" for part in parts[:2] for kind in ("weight", "bias")]
    if isinstance(attention.q_norm, nn.LayerNorm):
        for part in "qk":
            t.norm(f"{block}.attention.{part}_norm", f"{block}.attn.{part}_norm")
            names += [f"{block}.attention.{part}_norm.{kind}" for kind in ("weight", "bias")]
    if not attention.rotate_half:
        # Its pairs are neighbours (2i, 2i + 1); ours are (i, i + half).
        for name in names:
            t.state[name] = _halves(t.state[name], attention.head_dim)


def _halves(rows: Tensor, dim: int) -> Tensor:
    """Rows [heads * dim, ...] with the even dims of each head before the odd ones."""
    order = torch.cat([torch.arange(0, dim, 2), torch.arange(1, dim, 2)])
    return rows.unflatten(0, (-1, dim))[:, order].flatten(0, 1).contiguous()


def _rope(library: str, rope: Any) -> Rope:
    kind = type(rope).__name__
    plain = getattr(rope, "grid_indexing", "ij") == "ij" and not getattr(rope, "grid_offset", 0)
    if kind == "RotaryEmbeddingCat" and plain and rope.grid_type == "index":
        reference = tuple(rope.ref_feat_shape) if rope.ref_feat_shape is not None else None
        return Rope(float(rope.temperature), "index", reference)  # type: ignore[arg-type]
    separate = getattr(rope, "normalize_coords", "") == "separate" and getattr(rope, "min_period", None) is None
    if kind == "RotaryEmbeddingDinoV3" and plain and separate:
        return Rope(float(rope.temperature), "centred")
    raise refuse(library, f"{kind} with settings of its own as its positions")
