"""Small models with every feature of the architecture, one or two each, with random weights and outliers in them."""

from __future__ import annotations

from dataclasses import replace

import torch

from vitedge.vit.block import BlockConfig, Rope
from vitedge.vit.config import ViTConfig
from vitedge.vit.geometry import Reduction, Stage, Window
from vitedge.vit.model import VisionTransformer, init_weights
from vitedge.vit.stem import Stem, StemLayer

DENSE = BlockConfig(heads=2, qk_dim=16, v_dim=16, hidden=64, scale=0.25)
PLAIN = ViTConfig(image_size=(32, 32), patch_size=8, channels=3, width=32, classes=10, blocks=(DENSE,) * 3)
ROPE = Rope(100.0, "centred")

# A ResNetV2 with one block, and a sequence of strided convolutions.
RESNET = Stem(
    (
        StemLayer("conv", 16, 7, 2, "same", groups=4, act="relu"),
        StemLayer("pool", 16, 3, 2, "same", op="max"),
        StemLayer("down", 32, 1, groups=8),
        StemLayer("conv1", 8, 1, groups=2, act="relu", source="pool"),
        StemLayer("conv2", 8, 3, padding=1, groups=2, act="relu"),
        StemLayer("conv3", 32, 1, groups=8, plus="down", act="relu"),
        StemLayer("patch_embed", 32, 2, 2),
    )
)
CONVOLUTIONS = Stem(
    (
        StemLayer("first", 16, 3, 2, 1, act="hard_swish"),
        StemLayer("second", 24, 3, 1, 1, act="gelu"),
        StemLayer("mean", 24, 2, 2, op="mean"),
        StemLayer("patch_embed", 32, 3, 2, 1),
    )
)


def _with(**changes: object) -> ViTConfig:
    """`PLAIN` with other fields; those of a block go to all blocks."""
    own = {k: changes.pop(k) for k in ("act", "qk_norm", "rope") if k in changes}
    turned = own.pop("rope", None)
    block = replace(DENSE, **own, rope=turned is not None)  # type: ignore[arg-type]
    return replace(PLAIN, blocks=(block,) * 3, rope=turned, **changes)  # type: ignore[arg-type]


def _stages(v2: bool = False) -> ViTConfig:
    """Two stages; windows that are moved along both axes in the first one, along one in the second."""
    windows = [Window((4, 3), (2, 1) if i % 2 else (0, 0)) for i in range(4)]
    blocks = [replace(DENSE, window=window) for window in windows[:2]]
    blocks += [replace(DENSE, heads=3, hidden=96, window=window) for window in windows[2:]]
    blocks[2] = replace(blocks[2], stage=Stage(48))
    if v2:
        blocks = [replace(block, cosine=True, post_norm=True, scale=1.0) for block in blocks]
    own = {"prefix_tokens": (), "positions": False, "norm_pre": True, "pool": ("mean",)}
    return replace(PLAIN, image_size=(32, 48), patch_size=4, blocks=tuple(blocks), **own)


def _pyramid(linear: bool = False) -> ViTConfig:
    """Two stages, the second behind a convolution of overlapping tokens; keys and values of fewer tokens in the first
    one and, pooled, of unequal parts of the grid in the second too; depthwise convolutions in the MLPs."""
    own = {"depthwise": True, "relu": linear}
    first = Reduction((2, 3), pooled=True) if linear else Reduction((4, 2))
    blocks = [replace(DENSE, reduction=first, **own)] * 2
    second = replace(DENSE, heads=3, hidden=96, reduction=Reduction((3, 4), pooled=True) if linear else None, **own)
    blocks += [replace(second, stage=Stage(48, kernel=3)), second]
    more = {"prefix_tokens": (), "positions": False, "norm_pre": True, "pool": ("mean",), "conv_norm_eps": 1e-5}
    stem = Stem((StemLayer("patch_embed", 32, 7, 4, 3),))
    return replace(PLAIN, image_size=(32, 48), patch_size=4, blocks=tuple(blocks), stem=stem, **more)


REGISTERS = ("cls", "reg", "reg")
VARIANTS: dict[str, ViTConfig] = {
    "plain": PLAIN,
    "distilled": _with(prefix_tokens=("cls", "dist"), pool=("cls", "dist")),
    "registers": _with(prefix_tokens=REGISTERS, act="gelu_tanh"),
    "registers first": _with(prefix_tokens=("reg", "reg", "cls")),
    "mean, normalised after": _with(prefix_tokens=("reg", "reg"), pool=("mean",), pool_norm="pooled"),
    "mean, normalised before": _with(pool=("mean",), image_size=(24, 40), qk_norm=True),
    "cls and mean": _with(prefix_tokens=REGISTERS, pool=("cls", "mean"), channels=1),
    "attention pool": _with(prefix_tokens=(), pool=("attention",), pool_block=DENSE, activation="none"),
    "clip": _with(norm_pre=True, act="quick_gelu", classes=24, activation="none", normalize=True, channels=4),
    "rope and swiglu": _with(prefix_tokens=REGISTERS, positions=False, rope=ROPE, act="swiglu"),
    "rope of patches alone": _with(prefix_tokens=(), positions=False, rope=Rope(1e4), pool=("mean",), qk_norm=True),
    "resnet stem": _with(stem=RESNET),
    "convolutional stem": _with(stem=CONVOLUTIONS, image_size=(24, 40), pool=("mean",), channels=4),
    "windows and stages": _stages(),
    "cosine attention and norms after": _stages(v2=True),
    "pyramid": _pyramid(),
    "pyramid of pooled tokens": _pyramid(linear=True),
    "patches": _with(prefix_tokens=REGISTERS, pool=("patches",), activation="none", classes=32),
}


def make(config: ViTConfig, seed: int = 0) -> VisionTransformer:
    """A model in eval mode; LayerNorms, q's and k's too, are uneven, and a few channels are far out."""
    model = init_weights(VisionTransformer(config), seed).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
                parameter[min(3, len(parameter) - 1)] *= 6
            elif parameter.ndim == 1 or name == "class_token" or "query" in name or name.endswith("q.value"):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        if model.pos_embedding is not None:
            model.pos_embedding[..., 7] += 4
    return model


def images(config: ViTConfig, count: int = 4, seed: int = 0) -> torch.Tensor:
    """Normalised images [N, channels, H, W]: whole pixel values."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, config.channels, *config.image_size)
    return torch.randint(0, 256, shape, generator=generator) / 127.5 - 1
