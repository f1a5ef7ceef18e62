"""How a library names the tensors of a ViT. A new library is one `Layout`, here as data."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

BEFORE_HEAD = "other layers before the head's Linear, whose kind tensors can't tell"


@dataclass(frozen=True)
class Layout:
    """Where a library keeps each tensor.

    Attributes:
        name: of the library.
        stem: our name -> its name, outside of the blocks. A name of a layer stands for its `.weight` and `.bias`.
        block: prefix of block `{i}`'s tensors.
        parts: our name -> its name, inside a block.
        qkv: prefix of the fused product's `weight` and `bias` ("attn.qkv."), or None where q, k, v are apart.
        layer_scale: our layer -> name of the vector that scales its output, where the library has one
            (CaiT's LayerScale, arXiv 2103.17239); it is folded into that layer.
        aliases: (pattern, replacement) for older names of the same tensors.
        refused: pattern of the name of a tensor that the plain ViT doesn't have -> what it means.
        ignored: patterns of names whose tensors never reach the logits.
    """

    name: str
    stem: dict[str, str]
    block: str
    parts: dict[str, str]
    qkv: str | None = None
    layer_scale: dict[str, str] = field(default_factory=dict)
    aliases: tuple[tuple[str, str], ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """The tensor by which a ViT of this library is found behind any prefix."""
        return self.stem["patch_embed"] + ".weight"

    def rename(self, key: str) -> str:
        """The key by its newest name."""
        for pattern, replacement in self.aliases:
            key = re.sub(pattern, replacement, key)
        return key

    def depth(self, keys: list[str]) -> int:
        """Number of blocks: one more than the highest index that occurs."""
        prefix = re.escape(self.block).replace(r"\{i\}", r"(\d{1,6})")
        found = [int(m.group(1)) for key in keys if (m := re.match(prefix, key))]
        return max(found, default=-1) + 1

    def expected(self, depth: int) -> dict[str, tuple[str, ...]]:
        """Its names of all required tensors, each with our names of what it holds."""
        names: dict[str, tuple[str, ...]] = {}
        for ours, theirs in self.stem.items():
            suffixes = ("",) if ours in ("class_token", "pos_embedding") else (".weight", ".bias")
            names |= {theirs + s: (ours + s,) for s in suffixes}
        for i in range(depth):
            prefix = self.block.format(i=i)
            for ours, theirs in self.parts.items():
                names |= {f"{prefix}{theirs}{s}": (f"blocks.{i}.{ours}{s}",) for s in (".weight", ".bias")}
            if self.qkv:
                for s in ("weight", "bias"):
                    parts = tuple(f"blocks.{i}.attention.{p}.{s}" for p in "qkv")
                    names[f"{prefix}{self.qkv}{s}"] = parts
        return names


TORCHVISION = Layout(
    name="torchvision",
    stem={
        "class_token": "class_token",
        "pos_embedding": "encoder.pos_embedding",
        "patch_embed": "conv_proj",
        "norm": "encoder.ln",
        "head": "heads.head",
    },
    block="encoder.layers.encoder_layer_{i}.",
    parts={
        "norm1": "ln_1",
        "attention.out": "self_attention.out_proj",
        "norm2": "ln_2",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.3",
    },
    qkv="self_attention.in_proj_",
    aliases=(
        (r"mlp\.linear_1\.", "mlp.0."),
        (r"mlp\.linear_2\.", "mlp.3."),
        # model.heads = Linear(...), and a Linear that stands first in a Sequential.
        (r"^heads\.(?:head\.)?(?:0\.)?(weight|bias)$", r"heads.head.\1"),
    ),
    refused={
        r"heads\.pre_logits": "a second layer in the head (representation_size)",
        r"heads\.(?:head\.)?[1-9]\d*\.": BEFORE_HEAD,
        r"conv_proj\.(?!weight|bias)": "a stem of several convolutions",
    },
)

TIMM = Layout(
    name="timm",
    stem={
        "class_token": "cls_token",
        "pos_embedding": "pos_embed",
        "patch_embed": "patch_embed.proj",
        "norm": "norm",
        "head": "head",
    },
    block="blocks.{i}.",
    parts={
        "norm1": "norm1",
        "attention.out": "attn.proj",
        "norm2": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
    qkv="attn.qkv.",
    layer_scale={"attention.out": "ls1.gamma", "mlp.fc2": "ls2.gamma"},
    aliases=(
        (r"(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),  # DeiT-III's own release
        (r"^head\.0\.(weight|bias)$", r"head.\1"),
    ),
    refused={
        r"^(?:dist_token|head_dist)": "a distillation token",
        r"^reg_token": "register tokens",
        r"^fc_norm": "average pooling instead of [CLS]",
        r"^norm_pre": "a LayerNorm before the first block",
        r"^pre_logits": "a second layer in the head",
        r"^attn_pool": "attention pooling instead of [CLS]",
        r"attn\.[qk]_norm": "normalised queries and keys (qk_norm)",
        r"(?:attn|mlp)\.norm": "a LayerNorm inside of attention or MLP (scale_norm)",
        r"(?:attns|ffns|mlps)\.": "parallel attention and MLP branches",
        r"mlp\.(?:fc1_[gx]|w12|w[123]|gate)": "a gated MLP (SwiGLU, GLU)",
        r"relative_position_bias|rel_pos": "relative positions (BEiT, Swin)",
        r"^head\.[1-9]\d*\.": BEFORE_HEAD,
        r"^patch_embed\.(?:norm|backbone|conv)": "a stem of several layers",
        r"^layers\.": "stages that merge patches (Swin)",
    },
)

HUGGING_FACE = Layout(
    name="Hugging Face",
    stem={
        "class_token": "vit.embeddings.cls_token",
        "pos_embedding": "vit.embeddings.position_embeddings",
        "patch_embed": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "head": "classifier",
    },
    block="vit.encoder.layer.{i}.",
    parts={
        "norm1": "layernorm_before",
        "attention.q": "attention.attention.query",
        "attention.k": "attention.attention.key",
        "attention.v": "attention.attention.value",
        "attention.out": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
    # transformers 5 has shorter names in memory; its files keep the old ones.
    aliases=(
        (r"^vit\.layers\.(\d+)\.", r"vit.encoder.layer.\1."),
        (r"attention\.q_proj\.", "attention.attention.query."),
        (r"attention\.k_proj\.", "attention.attention.key."),
        (r"attention\.v_proj\.", "attention.attention.value."),
        (r"attention\.o_proj\.", "attention.output.dense."),
        (r"mlp\.fc1\.", "intermediate.dense."),
        (r"mlp\.fc2\.", "output.dense."),
        (r"^classifier\.0\.(weight|bias)$", r"classifier.\1"),
    ),
    refused={
        r"^decoder\.": "a decoder (masked image modelling)",
        r"^classifier\.[1-9]\d*\.": BEFORE_HEAD,
        r"mask_token": "a mask token (masked image modelling)",
    },
    ignored=(r"^vit\.pooler\.",),
)

LAYOUTS = (TORCHVISION, TIMM, HUGGING_FACE)
