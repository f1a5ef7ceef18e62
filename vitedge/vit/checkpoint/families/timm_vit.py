"""timm's VisionTransformer and DeiT: everything that its constructor offers and the architecture has.

What tensors can't tell (heads, activation, pooling, epsilon) is read from timm's own model of that name, made without
memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vitedge.vit.block import Rope
from vitedge.vit.checkpoint.families import timm_hybrid
from vitedge.vit.checkpoint.families.tensors import Read, Tensors, block_config, refuse
from vitedge.vit.config import ViTConfig
from vitedge.vit.stem import Stem

CLASSES = ("VisionTransformer", "VisionTransformerDistilled")
_ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}


def read(tensors: Mapping[str, Tensor], model: Any) -> Read:
    """`model`: timm's, of these tensors' names. Raises VitedgeError for parts that the architecture has not."""
    distilled = type(model).__name__ == "VisionTransformerDistilled"
    t = Tensors(f"timm {type(model).__name__}", tensors, (r"num_batches_tracked$",))
    check(t.library, model, ("Attention",))
    hybrid = timm_hybrid.stem(t, model.patch_embed) if hasattr(model.patch_embed, "backbone") else None
    if hybrid is None:
        t.linear("patch_embed", "patch_embed.proj")
    names = [n for n in ("cls_token", "dist_token", "reg_token") if n in t]
    tokens, positions = t.tokens(*names), t.take("pos_embed") if model.pos_embed is not None else None
    kinds = [n.removesuffix("_token") for n, token in zip(names, tokens, strict=True) for _ in range(token.shape[1])]
    t.prefix(tokens, positions, model.patch_embed.num_patches)
    if not isinstance(model.norm_pre, nn.Identity):
        t.norm("pre_norm", "norm_pre")
    for i, block in enumerate(model.blocks):
        ours, theirs = f"blocks.{i}", f"blocks.{i}"
        norms_and_mlp(t, i, block.mlp, ("ls1.gamma", "ls2.gamma"))
        parts = tuple(f"{ours}.attention.{part}" for part in "qkv")
        t.fused(parts, f"{theirs}.attn.qkv.weight", f"{theirs}.attn.qkv.bias")
        if isinstance(block.attn.q_norm, nn.LayerNorm):
            for part in "qk":
                t.norm(f"{ours}.attention.{part}_norm", f"{theirs}.attn.{part}_norm")
    pooled, pool = pooling(t, model, kinds)
    head(t, model)
    if distilled:
        pool = ("cls", "dist")
        t.linear("heads.0", "head_dist")
        for name in ("head", "heads.0"):
            t.state |= {f"{name}.{kind}": t.state[f"{name}.{kind}"] / 2 for kind in ("weight", "bias")}
    return t.finish(configuration(t, model, tuple(kinds), pool, pooled, stem=hybrid))


def configuration(
    t: Tensors,
    model: Any,
    kinds: tuple[str, ...],
    pool: tuple[str, ...],
    pooled: bool,
    rope: Rope | None = None,
    stem: Stem | None = None,
) -> ViTConfig:
    """The configuration of what was taken."""
    block, width = model.blocks[0], model.embed_dim
    own = {"rope": rope is not None, "qk_norm": isinstance(block.attn.q_norm, nn.LayerNorm)}
    hidden = len(t.state["blocks.0.mlp.fc1.weight"])
    act = "swiglu" if "blocks.0.mlp.gate.weight" in t.state else mlp_activation(t.library, block.mlp.act)
    dense = block_config(width, block.attn.num_heads, hidden, act=act, **own)
    pool_block = None
    if model.attn_pool is not None:
        latent = model.attn_pool
        pool_act = mlp_activation(t.library, latent.mlp.act)
        pool_block = block_config(width, latent.num_heads, len(t.state["pooling.mlp.fc1.weight"]), act=pool_act)
    embed = model.patch_embed
    return ViTConfig(
        image_size=tuple(embed.img_size),
        patch_size=embed.patch_size[0] if stem is None else embed.img_size[0] // embed.grid_size[0],
        channels=t.state["patch_embed.weight"].shape[1] if stem is None else embed.in_chans,
        width=width,
        classes=len(t.state["head.weight"]),
        blocks=(dense,) * len(model.blocks),
        norm_eps=block.norm1.eps,
        activation="softmax" if isinstance(model.head, nn.Linear) else "none",
        prefix_tokens=kinds,
        positions=model.pos_embed is not None,
        norm_pre="pre_norm.weight" in t.state,
        rope=rope,
        pool=pool,
        pool_norm="pooled" if pooled else "tokens",
        pool_block=pool_block,
        stem=stem,
    )


def check(library: str, model: Any, attentions: tuple[str, ...]) -> None:
    """Raises VitedgeError for parts of timm's model that the architecture has not."""
    for block in model.blocks:
        if type(block).__name__ not in ("Block", "EvaBlock"):
            raise refuse(library, f"blocks of another kind ({type(block).__name__})")
        attention = block.attn
        inner = [getattr(attention, "norm", None), getattr(block.mlp, "norm", None)]
        problem = (
            f"{type(attention).__name__} as its attention" if type(attention).__name__ not in attentions
            else f"{type(block.norm1).__name__} as its norms" if not isinstance(block.norm1, nn.LayerNorm)
            else "a LayerNorm inside of attention or MLP" if any(isinstance(n, nn.LayerNorm) for n in inner)
            else "gated attention" if getattr(attention, "gate", None) is not None
            else ""
        )  # fmt: skip
        if problem:
            raise refuse(library, problem)
    embed = model.patch_embed
    if hasattr(embed, "backbone"):
        return
    if not isinstance(getattr(embed, "norm", nn.Identity()), nn.Identity) or not isinstance(embed.proj, nn.Conv2d):
        raise refuse(library, "a stem of several layers")
    if embed.patch_size[0] != embed.patch_size[1]:
        raise refuse(library, f"patches of {embed.patch_size[0]} x {embed.patch_size[1]}")


def norms_and_mlp(t: Tensors, i: int, mlp: Any, scales: tuple[str, str]) -> None:
    """Norms, output projection and MLP of block `i`; the names of its LayerScales, which are folded."""
    ours = f"blocks.{i}"
    gamma = [t.take(n) if (n := f"{ours}.{scale}") in t else None for scale in scales]
    for norm in ("norm1", "norm2"):
        t.norm(f"{ours}.{norm}", f"{ours}.{norm}")
    t.linear(f"{ours}.attention.out", f"{ours}.attn.proj", gamma[0])
    kind = type(mlp).__name__
    if kind == "SwiGLU":
        t.linear(f"{ours}.mlp.gate", f"{ours}.mlp.fc1_g")
        t.linear(f"{ours}.mlp.fc1", f"{ours}.mlp.fc1_x")
    elif kind == "GluMlp" and not mlp.gate_last and isinstance(mlp.act, nn.SiLU):
        parts = (f"{ours}.mlp.gate", f"{ours}.mlp.fc1")
        t.fused(parts, f"{ours}.mlp.fc1.weight", f"{ours}.mlp.fc1.bias")
    elif kind == "Mlp":
        t.linear(f"{ours}.mlp.fc1", f"{ours}.mlp.fc1")
    else:
        raise refuse(t.library, f"{kind} as its MLP")
    t.linear(f"{ours}.mlp.fc2", f"{ours}.mlp.fc2", gamma[1])


def pooling(t: Tensors, model: Any, kinds: list[str]) -> tuple[bool, tuple[str, ...]]:
    """(whether the last LayerNorm comes after pooling, what is pooled)."""
    norms = {name: isinstance(getattr(model, name), nn.LayerNorm) for name in ("norm", "fc_norm")}
    if sum(norms.values()) != 1:
        raise refuse(t.library, f"{sum(norms.values())} LayerNorms after the blocks")
    t.norm("norm", next(name for name, there in norms.items() if there))
    latent, how = model.attn_pool, model.global_pool
    if latent is not None:
        if type(latent).__name__ != "AttentionPoolLatent" or kinds or norms["fc_norm"] or latent.latent_len != 1:
            raise refuse(t.library, f"{type(latent).__name__} beside prefix tokens")
        _latent(t, latent)
        return False, ("attention",)
    if getattr(model, "pool_include_prefix", False) and kinds:
        raise refuse(t.library, "the mean of all tokens, the prefix included")
    known = {"token": ("cls",), "avg": ("mean",), "": ("patches",)}
    if how not in known or (how == "token" and "cls" not in kinds):
        raise refuse(t.library, f"global_pool {how!r}")
    return norms["fc_norm"] and how == "avg", known[how]


def _latent(t: Tensors, latent: Any) -> None:
    """Attention pooling, whose query is a constant."""
    if latent.pos_embed is not None or isinstance(latent.q_norm, nn.LayerNorm):
        raise refuse(t.library, "attention pooling with positions or normalised queries")
    query = t.take("attn_pool.latent")[:, :1].double()
    if isinstance(latent.q, nn.Linear):
        bias = t.take("attn_pool.q.bias").double() if latent.q.bias is not None else None
        query = F.linear(query, t.take("attn_pool.q.weight").double(), bias)
    t.state["pooling.attention.q.value"] = query.float()
    parts = ("pooling.attention.k", "pooling.attention.v")
    t.fused(parts, "attn_pool.kv.weight", "attn_pool.kv.bias")
    t.linear("pooling.attention.out", "attn_pool.proj")
    t.norm("pooling.norm2", "attn_pool.norm")
    for part in ("fc1", "fc2"):
        t.linear(f"pooling.mlp.{part}", f"attn_pool.mlp.{part}")


def head(t: Tensors, model: Any) -> None:
    """The classifier, or the embedding as it is."""
    if isinstance(model.head, nn.Linear):
        t.linear("head", "head")
    else:
        t.identity_head(model.embed_dim)


def mlp_activation(library: str, act: Any) -> str:
    """Our name of a module of timm's or torch's."""
    if isinstance(act, nn.GELU):
        return "gelu" if act.approximate == "none" else "gelu_tanh"
    name = _ACTIVATIONS.get(type(act).__name__, "")
    if name in ("", "silu"):
        raise refuse(library, f"{type(act).__name__} in its MLPs")
    return name
