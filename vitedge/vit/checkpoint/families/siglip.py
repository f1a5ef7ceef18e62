"""transformers' SigLIP: the image tower with attention pooling, or a classifier on the mean (arXiv 2303.15343)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from vitedge.vit.checkpoint.families.hugging_face import Settings, clip_block, without
from vitedge.vit.checkpoint.families.tensors import Read, Tensors, activation, block_config, grid_of, refuse
from vitedge.vit.config import ViTConfig

MODEL_TYPES = ("siglip", "siglip_vision_model")


def read(tensors: Mapping[str, Tensor], s: Settings) -> Read:
    """SiglipVisionModel, SiglipModel (normalised as it does), SiglipForImageClassification."""
    named, classifies = without(tensors, "vision_model."), "Classification" in s.architecture
    inner = Settings.model_validate({"model_type": "siglip_vision_model", **(s.vision_config or s.model_dump())})
    ignore = (r"^text_", r"^logit_", r"position_ids$", *((r"^head\.",) if classifies else ()))
    t = Tensors(f"transformers {s.architecture or 'SigLIP'}", named, ignore)
    if not classifies and not inner.vision_use_head:
        raise refuse(t.library, "no pooling (vision_use_head is false)")
    t.linear("patch_embed", "embeddings.patch_embedding")
    positions = t.take("embeddings.position_embedding.weight")[None]
    for i in range(inner.num_hidden_layers):
        clip_block(t, i)
    t.norm("norm", "post_layernorm")
    width, channels, patch = t.state["patch_embed.weight"].shape[:3]
    t.prefix((), positions, positions.shape[1])
    known = "hidden_act" in inner.model_fields_set
    act = activation(t.library, inner.hidden_act if known else "gelu_pytorch_tanh")
    block = block_config(width, inner.num_attention_heads, inner.intermediate_size or 3072, act=act)
    if classifies:
        t.linear("head", "classifier")
    else:
        _pool(t)
        t.identity_head(width)
    config = ViTConfig(
        image_size=grid_of(positions.shape[1], inner.image_size, patch),
        patch_size=patch,
        channels=channels,
        width=width,
        classes=len(t.state["head.weight"]),
        blocks=(block,) * inner.num_hidden_layers,
        norm_eps=inner.layer_norm_eps or 1e-6,
        activation=s.output,  # type: ignore[arg-type]
        prefix_tokens=(),
        pool=("mean",) if classifies else ("attention",),
        pool_block=None if classifies else block,
        normalize=s.model_type == "siglip" and not classifies,
    )
    return t.finish(config)


def _pool(t: Tensors) -> None:
    """torch's MultiheadAttention with a learned query, which becomes a constant."""
    parts = tuple(f"pooling.attention.{part}" for part in "qkv")
    t.fused(parts, "head.attention.in_proj_weight", "head.attention.in_proj_bias")
    weight, bias = (t.state.pop(f"pooling.attention.q.{kind}") for kind in ("weight", "bias"))
    query = F.linear(t.take("head.probe").double(), weight.double(), bias.double())
    t.state["pooling.attention.q.value"] = query.float()
    t.linear("pooling.attention.out", "head.attention.out_proj")
    t.norm("pooling.norm2", "head.layernorm")
    for part in ("fc1", "fc2"):
        t.linear(f"pooling.mlp.{part}", f"head.mlp.{part}")
