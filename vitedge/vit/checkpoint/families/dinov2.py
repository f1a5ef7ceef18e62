"""transformers' DINOv2, with registers or without: LayerScale, SwiGLU in the giant (arXiv 2304.07193, 2309.16588)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from vitedge.vit.checkpoint.families.hugging_face import Settings, old_block, without
from vitedge.vit.checkpoint.families.tensors import Read, Tensors, activation, block_config, grid_of
from vitedge.vit.config import ViTConfig

MODEL_TYPES = ("dinov2", "dinov2_with_registers")


def read(tensors: Mapping[str, Tensor], s: Settings) -> Read:
    """The model ([CLS] after the last LayerNorm), and its classifier on [CLS] and the mean of the patches."""
    named = without(tensors, f"{s.model_type}.")
    t = Tensors(f"transformers {s.architecture or s.model_type}", named, (r"mask_token",))
    t.linear("patch_embed", "embeddings.patch_embeddings.projection")
    names = ["embeddings.cls_token"]
    names += ["embeddings.register_tokens"] if "embeddings.register_tokens" in t else []
    tokens, positions = t.tokens(*names), t.take("embeddings.position_embeddings")
    for i in range(s.num_hidden_layers):
        old_block(t, i, ("norm1", "norm2"))
    t.norm("norm", "layernorm")
    width, channels, patch = t.state["patch_embed.weight"].shape[:3]
    pool: tuple[str, ...] = ("cls",)
    if "classifier.weight" in t:
        pool = ("cls", "mean")
        weight, bias = t.take("classifier.weight"), t.take("classifier.bias")
        t.state |= {"head.weight": weight[:, :width], "head.bias": bias}
        t.state |= {"heads.0.weight": weight[:, width:], "heads.0.bias": bias * 0}
    else:
        t.identity_head(width)
    t.prefix(tokens, positions, positions.shape[1] - 1)
    gated = "blocks.0.mlp.gate.weight" in t.state
    act = activation(t.library, "silu" if gated else s.hidden_act, gated=gated)
    block = block_config(width, s.num_attention_heads, len(t.state["blocks.0.mlp.fc1.weight"]), act=act)
    config = ViTConfig(
        image_size=grid_of(positions.shape[1] - 1, s.image_size, patch),
        patch_size=patch,
        channels=channels,
        width=width,
        classes=len(t.state["head.weight"]),
        blocks=(block,) * s.num_hidden_layers,
        norm_eps=s.layer_norm_eps or 1e-6,
        activation=s.output,  # type: ignore[arg-type]
        prefix_tokens=("cls", *["reg"] * sum(token.shape[1] for token in tokens[1:])),
        pool=pool,
    )
    return replace(t.finish(config), any_size=True)
