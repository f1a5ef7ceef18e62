"""transformers' DINOv3 ViT: RoPE, registers, LayerScale, gated MLPs in some sizes (arXiv 2508.10104)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from vitedge.vit.block import Rope
from vitedge.vit.checkpoint.families.hugging_face import Settings, without
from vitedge.vit.checkpoint.families.tensors import Read, Tensors, activation, block_config
from vitedge.vit.config import ViTConfig, sides

MODEL_TYPES = ("dinov3_vit",)


def read(tensors: Mapping[str, Tensor], s: Settings) -> Read:
    """DINOv3ViTModel: [CLS] after the last LayerNorm."""
    named = without(tensors, "model.")
    t = Tensors(f"transformers {s.architecture or s.model_type}", named, (r"mask_token", r"inv_freq"))
    t.linear("patch_embed", "embeddings.patch_embeddings")
    tokens = t.tokens("embeddings.cls_token", "embeddings.register_tokens")
    for i in range(s.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"layer.{i}"
        scales = [t.take(f"{theirs}.layer_scale{k}.lambda1") for k in (1, 2)]
        for norm in ("norm1", "norm2"):
            t.norm(f"{ours}.{norm}", f"{theirs}.{norm}")
        for part in "qkv":
            t.linear(f"{ours}.attention.{part}", f"{theirs}.attention.{part}_proj")
        t.linear(f"{ours}.attention.out", f"{theirs}.attention.o_proj", scales[0])
        t.linear(f"{ours}.mlp.fc1", f"{theirs}.mlp.up_proj")
        if s.use_gated_mlp:
            t.linear(f"{ours}.mlp.gate", f"{theirs}.mlp.gate_proj")
        t.linear(f"{ours}.mlp.fc2", f"{theirs}.mlp.down_proj", scales[1])
    t.norm("norm", "norm")
    width, channels, patch = t.state["patch_embed.weight"].shape[:3]
    t.identity_head(width)
    t.prefix(tokens, None, 0)
    act = activation(t.library, s.hidden_act, gated=s.use_gated_mlp)
    hidden = len(t.state["blocks.0.mlp.fc1.weight"])
    block = block_config(width, s.num_attention_heads, hidden, act=act, rope=True)
    theta = (s.rope_parameters or {}).get("rope_theta", s.rope_theta)
    config = ViTConfig(
        image_size=sides(s.image_size),
        patch_size=patch,
        channels=channels,
        width=width,
        classes=width,
        blocks=(block,) * s.num_hidden_layers,
        norm_eps=s.layer_norm_eps or 1e-5,
        activation="none",
        prefix_tokens=("cls", *["reg"] * tokens[1].shape[1]),
        positions=False,
        rope=Rope(theta, "centred"),
    )
    return replace(t.finish(config), any_size=True)
