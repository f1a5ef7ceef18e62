"""transformers' CLIP: the image tower, with its projection or without (arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vitedge.vit.checkpoint.families.hugging_face import Settings, clip_block, without
from vitedge.vit.checkpoint.families.tensors import Read, Tensors, activation, block_config, grid_of, refuse
from vitedge.vit.config import ViTConfig

MODEL_TYPES = ("clip", "clip_vision_model")


def read(tensors: Mapping[str, Tensor], s: Settings) -> Read:
    """CLIPVisionModel (pooled), CLIPVisionModelWithProjection, CLIPModel (projected, and normalised as it does)."""
    whole, named = s.model_type == "clip", without(tensors, "vision_model.")
    inner = Settings.model_validate({"model_type": "clip_vision_model", **(s.vision_config or {})}) if whole else s
    ignore = (r"^text_", r"^logit_", r"position_ids$")
    t = Tensors(f"transformers {s.architecture or 'CLIP'}", named, ignore)
    if "Classification" in s.architecture:
        raise refuse(t.library, "a classifier on the mean of tokens that no LayerNorm has seen")
    t.linear("patch_embed", "embeddings.patch_embedding")
    tokens = t.tokens("embeddings.class_embedding")
    positions = t.take("embeddings.position_embedding.weight")[None]
    t.norm("pre_norm", "pre_layrnorm")
    for i in range(inner.num_hidden_layers):
        clip_block(t, i)
    t.norm("norm", "post_layernorm")
    width, channels, patch = t.state["patch_embed.weight"].shape[:3]
    if "visual_projection.weight" in t:
        t.linear("head", "visual_projection")
    else:
        t.identity_head(width)
    patches = positions.shape[1] - 1
    t.prefix(tokens, positions, patches)
    act = activation(t.library, inner.hidden_act if "hidden_act" in inner.model_fields_set else "quick_gelu")
    block = block_config(width, inner.num_attention_heads, inner.intermediate_size or 3072, act=act)
    config = ViTConfig(
        image_size=grid_of(patches, inner.image_size, patch),
        patch_size=patch,
        channels=channels,
        width=width,
        classes=len(t.state["head.weight"]),
        blocks=(block,) * inner.num_hidden_layers,
        norm_eps=inner.layer_norm_eps or 1e-5,
        activation="none",
        norm_pre=True,
        normalize=whole,
    )
    return t.finish(config)
