"""transformers' ViTModel and DeiT: one prefix token or two, a head on each or none (arXiv 2012.12877)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vitedge.vit.checkpoint.families.hugging_face import Settings, old_block, without
from vitedge.vit.checkpoint.families.tensors import Read, Tensors, activation, block_config, grid_of
from vitedge.vit.config import ViTConfig

MODEL_TYPES = ("vit", "deit")


def read(tensors: Mapping[str, Tensor], s: Settings) -> Read:
    """ViTModel, ViTForImageClassification, DeiTModel, DeiTForImageClassification(WithTeacher)."""
    named = without(tensors, f"{s.model_type}.")
    t = Tensors(f"transformers {s.architecture or s.model_type}", named, (r"^pooler\.", r"mask_token"))
    kinds: tuple[str, ...] = ("cls", "dist") if s.model_type == "deit" else ("cls",)
    t.linear("patch_embed", "embeddings.patch_embeddings.projection")
    tokens = t.tokens(*("embeddings.cls_token", "embeddings.distillation_token")[: len(kinds)])
    positions = t.take("embeddings.position_embeddings")
    for i in range(s.num_hidden_layers):
        old_block(t, i)
    t.norm("norm", "layernorm")
    pool: tuple[str, ...] = ("cls",)
    if "cls_classifier.weight" in t:
        # transformers takes the mean of the two heads.
        pool = kinds
        for ours, theirs in (("head", "cls_classifier"), ("heads.0", "distillation_classifier")):
            t.linear(ours, theirs)
            t.state |= {f"{ours}.{k}": t.state[f"{ours}.{k}"] / 2 for k in ("weight", "bias")}
    elif "classifier.weight" in t:
        t.linear("head", "classifier")
    else:
        t.identity_head(s.hidden_size)
    width, _, patch = t.state["patch_embed.weight"].shape[:3]
    patches = positions.shape[1] - len(kinds)
    t.prefix(tokens, positions, patches)
    hidden = s.intermediate_size or 4 * width
    block = block_config(width, s.num_attention_heads, hidden, act=activation(t.library, s.hidden_act))
    config = ViTConfig(
        image_size=grid_of(patches, s.image_size, patch),
        patch_size=patch,
        channels=s.num_channels,
        width=width,
        classes=len(t.state["head.weight"]),
        blocks=(block,) * s.num_hidden_layers,
        norm_eps=s.layer_norm_eps or 1e-12,
        activation=s.output,  # type: ignore[arg-type]
        prefix_tokens=kinds,
        pool=pool,
    )
    return t.finish(config)
