"""open_clip's state dicts: the image tower, `visual.` (OpenAI's CLIP has the same names)."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from vitedge.vit.checkpoint.families.tensors import Read, Tensors, block_config, grid_of
from vitedge.vit.config import ViTConfig


class Settings(BaseModel):
    """`model_cfg` of open_clip_config.json: keys that change what its image tower computes."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    class Vision(BaseModel):
        model_config = ConfigDict(extra="forbid", protected_namespaces=())
        image_size: int | list[int] = 224
        layers: int = 12
        width: int = 768
        head_width: int = 64
        mlp_ratio: float = 4.0
        patch_size: int = 16

    vision_cfg: Vision
    quick_gelu: bool = False


def read(tensors: Mapping[str, Tensor], s: Settings) -> Read:
    """The projected embedding, normalised as CLIP's forward does."""
    visual = {k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.")}
    t = Tensors("open_clip", visual)
    t.linear("patch_embed", "conv1")
    tokens, positions = t.tokens("class_embedding"), t.take("positional_embedding")[None]
    t.norm("pre_norm", "ln_pre")
    for i in range(t.depth("transformer.resblocks.#.")):
        ours, theirs = f"blocks.{i}", f"transformer.resblocks.{i}"
        for n in "12":
            t.norm(f"{ours}.norm{n}", f"{theirs}.ln_{n}")
        parts = tuple(f"{ours}.attention.{part}" for part in "qkv")
        t.fused(parts, f"{theirs}.attn.in_proj_weight", f"{theirs}.attn.in_proj_bias")
        t.linear(f"{ours}.attention.out", f"{theirs}.attn.out_proj")
        t.linear(f"{ours}.mlp.fc1", f"{theirs}.mlp.c_fc")
        t.linear(f"{ours}.mlp.fc2", f"{theirs}.mlp.c_proj")
    t.norm("norm", "ln_post")
    projection = t.take("proj")
    t.state |= {"head.weight": projection.T.contiguous(), "head.bias": projection.new_zeros(projection.shape[-1])}
    width, channels, patch = t.state["patch_embed.weight"].shape[:3]
    patches = positions.shape[1] - 1
    t.prefix(tokens, positions, patches)
    act = "quick_gelu" if s.quick_gelu else "gelu"
    block = block_config(width, width // s.vision_cfg.head_width, len(t.state["blocks.0.mlp.fc1.weight"]), act=act)
    depth = len({k.split(".")[1] for k in t.state if k.startswith("blocks.")})
    size = s.vision_cfg.image_size
    config = ViTConfig(
        image_size=grid_of(patches, tuple(size) if isinstance(size, list) else size, patch),
        patch_size=patch,
        channels=channels,
        width=width,
        classes=len(t.state["head.weight"]),
        blocks=(block,) * depth,
        norm_eps=1e-5,
        activation="none",
        norm_pre=True,
        normalize=True,
    )
    return t.finish(config)
