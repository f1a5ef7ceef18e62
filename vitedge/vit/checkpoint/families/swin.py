"""Swin of torchvision, timm and transformers (arXiv 2103.14030): windows, and stages that begin with patch merging.
Swin v2 (arXiv 2111.09883) of torchvision and timm: cosine attention, LayerNorm after each half, and biases that an MLP
makes of log-spaced distances, baked here to a table.

torchvision's tensors tell everything; timm's need its name, transformers' their config.json.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitedge.vit.block import BlockConfig
from vitedge.vit.checkpoint.families.hugging_face import Settings, without
from vitedge.vit.checkpoint.families.tensors import Read, Tensors, activation, block_config, refuse
from vitedge.vit.checkpoint.families.timm_vit import mlp_activation
from vitedge.vit.config import ViTConfig, sides
from vitedge.vit.geometry import Stage, Window

CLASSES = ("SwinTransformer", "SwinTransformerV2")
MODEL_TYPES = ("swin",)
# torchvision's name -> (width of the first stage, blocks and heads of each stage).
SIZES = {
    f"swin_{version}{letter}": (width, (2, 2, depth, 2), tuple(heads * 2**stage for stage in range(4)))
    for version in ("", "v2_")
    for letter, width, depth, heads in (("t", 96, 6, 3), ("s", 96, 18, 3), ("b", 128, 18, 4))
}
TORCHVISION_ANCHOR = "features.0.0.weight"
_EPS = 1e-5
# Buffers that follow from the sizes.
_COMPUTED = (r"relative_position_index$", r"attn_mask$", r"relative_coords_table$")


def dense_config(name: str, classes: int = 1000) -> ViTConfig:
    """Of torchvision's Swin of that name, for images of the size that it was trained on."""
    width, depths, heads = SIZES[name]
    v2, stages = "v2" in name, []
    side = 8 if v2 else 7
    for stage, depth in enumerate(depths):
        wide = width * 2**stage
        shifts = [side // 2 * (i % 2) for i in range(depth)]
        stages.append([(wide, heads[stage], 4 * wide, Window((side, side), (s, s))) for s in shifts])
    return _config(stages, (32 * side,) * 2, 4, 3, classes, v2=v2)


def torchvision_arguments(config: ViTConfig) -> dict[str, Any]:
    """What torchvision's SwinTransformer is told for such a model."""
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

    own = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2} if config.post_norm else {}
    starts = [0, *(i for i, block in enumerate(config.blocks) if block.stage), len(config.blocks)]
    first = config.blocks[0]
    assert first.window is not None
    return {
        "patch_size": [config.patch_size] * 2,
        "embed_dim": config.width,
        "depths": [end - start for start, end in itertools.pairwise(starts)],
        "num_heads": [config.blocks[start].heads for start in starts[:-1]],
        "window_size": list(first.window.size),
        "mlp_ratio": first.hidden / config.width,
        "num_classes": config.classes,
        **own,
    }


def is_torchvision(names: Iterable[str]) -> bool:
    """Whether these are the tensors of torchvision's Swin."""
    names = set(names)
    return {TORCHVISION_ANCHOR, "features.1.0.attn.relative_position_index"} <= names


def read_torchvision(tensors: Mapping[str, Tensor]) -> Read:
    """torchvision's SwinTransformer of either version, for images of 32 windows' pixels."""
    t = Tensors("torchvision SwinTransformer", tensors, _COMPUTED)
    v2 = "features.1.0.attn.logit_scale" in t
    t.linear("patch_embed", "features.0.0")
    t.norm("pre_norm", "features.0.2")
    stages: list[list[_Block]] = []
    while depth := t.depth(f"features.{2 * len(stages) + 1}.#."):
        at, blocks = 2 * len(stages) + 1, []
        if stages:
            _merging(t, sum(map(len, stages)), f"features.{at - 1}")
        for i in range(depth):
            ours = f"blocks.{sum(map(len, stages)) + i}"
            theirs = f"features.{at}.{i}"
            # Of a window, the index has as many entries as it has pairs of tokens.
            side = math.isqrt(math.isqrt(tensors[f"{theirs}.attn.relative_position_index"].numel()))
            _block(t, ours, theirs, ("mlp.0", "mlp.3"), (side, side))
            heads, shift = t.state[f"{ours}.attention.bias.table"].shape[1], side // 2 * (i % 2)
            blocks.append((*_widths(t, ours, heads), Window((side, side), (shift, shift))))
        stages.append(blocks)
    t.norm("norm", "norm")
    _head(t, "head")
    patch = t.state["patch_embed.weight"].shape[-1]
    size, channels = (32 * stages[0][0][3].size[0],) * 2, t.state["patch_embed.weight"].shape[1]
    return t.finish(_config(stages, size, patch, channels, _classes(t), v2=v2))


def read(tensors: Mapping[str, Tensor], model: Any) -> Read:
    """timm's SwinTransformer of either version; `model`: timm's, of these tensors' names."""
    t = Tensors(f"timm {type(model).__name__}", tensors, _COMPUTED)
    v2 = type(model).__name__ == "SwinTransformerV2"
    t.linear("patch_embed", "patch_embed.proj")
    t.norm("pre_norm", "patch_embed.norm")
    # Files of Swin's own release have the merging at the end of a stage, timm at the beginning of the next.
    late = int("layers.0.downsample.norm.weight" in t)
    stages: list[list[_Block]] = []
    act = mlp_activation(t.library, model.layers[0].blocks[0].mlp.act)
    for number, layer in enumerate(model.layers):
        start, blocks = sum(map(len, stages)), []
        if stages:
            _merging(t, start, f"layers.{number - late}.downsample")
        for i, block in enumerate(layer.blocks):
            if block.always_partition:
                raise refuse(t.library, "windows that are moved although there is one alone (always_partition)")
            ours = f"blocks.{start + i}"
            window = Window(tuple(block.window_size), tuple(block.target_shift_size), pad_first=False)
            trained = tuple(block.attn.pretrained_window_size) if v2 else (0, 0)
            trained = trained if trained[0] > 0 else window.size
            _block(t, ours, f"layers.{number}.blocks.{i}", ("mlp.fc1", "mlp.fc2"), window.size, trained)
            blocks.append((*_widths(t, ours, block.attn.num_heads), window))
        stages.append(blocks)
    t.norm("norm", "norm")
    _head(t, "head.fc" if "head.fc.weight" in t else "head")
    if model.global_pool != "avg":
        raise refuse(t.library, f"global_pool {model.global_pool!r}")
    size, patch = tuple(model.patch_embed.img_size), model.patch_embed.patch_size[0]
    return t.finish(_config(stages, size, patch, model.in_chans, _classes(t), act, eps=model.norm.eps, v2=v2))


def read_hugging_face(tensors: Mapping[str, Tensor], s: Settings) -> Read:
    """SwinModel and SwinForImageClassification."""
    named = without(tensors, "swin.")
    t = Tensors(f"transformers {s.architecture or s.model_type}", named, (*_COMPUTED, r"mask_token"))
    size, patch = sides(s.image_size), s.patch_size if "patch_size" in s.model_fields_set else 4
    square = len({*size}) == 1 or s.window_size * 2 ** (len(s.depths) - 1) * sides(patch)[0] < min(size)
    problem = (
        "absolute positions" if s.use_absolute_embeddings
        else "LayerNorms of two epsilons" if (s.layer_norm_eps or _EPS) != _EPS
        else f"patches of {patch[0]} x {patch[1]}" if isinstance(patch, list) and len({*patch}) > 1
        else "oblong images of one window" if not square
        else ""
    )  # fmt: skip
    if problem:
        raise refuse(t.library, problem)
    t.linear("patch_embed", "embeddings.patch_embeddings.projection")
    t.norm("pre_norm", "embeddings.norm")
    stages: list[list[_Block]] = []
    for stage, depth in enumerate(s.depths):
        start, blocks = sum(map(len, stages)), []
        for i in range(depth):
            ours, shift = f"blocks.{start + i}", s.window_size // 2 * (i % 2)
            _hugging_face_block(t, ours, f"encoder.layers.{stage}.blocks.{i}")
            window = Window((s.window_size, s.window_size), (shift, shift))
            blocks.append((*_widths(t, ours, s.num_heads[stage]), window))
        stages.append(blocks)
        if stage + 1 < len(s.depths):
            _merging(t, start + depth, f"encoder.layers.{stage}.downsample")
    t.norm("norm", "layernorm")
    _head(t, "classifier")
    act = activation(t.library, s.hidden_act)
    config = _config(stages, size, sides(patch)[0], s.num_channels, _classes(t), act, output=s.output)
    return t.finish(config)


# Width, heads, MLP units and window of a block.
_Block = tuple[int, int, int, Window]


def _config(
    stages: list[list[_Block]],
    size: tuple[int, int],
    patch: int,
    channels: int,
    classes: int,
    act: str = "gelu",
    *,
    eps: float = _EPS,
    output: str = "softmax",
    v2: bool = False,
) -> ViTConfig:
    own = {"act": act, "cosine": v2, "post_norm": v2}
    blocks: list[BlockConfig] = []
    for number, stage in enumerate(stages):
        for i, (width, heads, hidden, window) in enumerate(stage):
            begins = Stage(width) if number and not i else None
            block = block_config(width, heads, hidden, window=window, stage=begins, **own)
            blocks.append(replace(block, scale=1.0) if v2 else block)
    return ViTConfig(
        image_size=size,
        patch_size=patch,
        channels=channels,
        width=stages[0][0][0],
        classes=classes,
        blocks=tuple(blocks),
        norm_eps=eps,
        activation=output,  # type: ignore[arg-type]
        prefix_tokens=(),
        positions=False,
        norm_pre=True,
        pool=("mean",),
    )


def _block(
    t: Tensors,
    ours: str,
    theirs: str,
    mlp: tuple[str, str],
    size: tuple[int, int],
    trained: tuple[int, int] | None = None,
) -> None:
    """Takes one block. size: of its window; trained: of the window that distances are counted in (Swin v2)."""
    for norm in ("norm1", "norm2"):
        t.norm(f"{ours}.{norm}", f"{theirs}.{norm}")
    parts = tuple(f"{ours}.attention.{part}" for part in "qkv")
    t.fused(parts, f"{theirs}.attn.qkv.weight", f"{theirs}.attn.qkv.bias")
    for part, bias in zip(parts, ("q_bias", "", "v_bias"), strict=True):
        if f"{theirs}.attn.{bias}" in t:
            t.state[f"{part}.bias"] = t.take(f"{theirs}.attn.{bias}")
    t.linear(f"{ours}.attention.out", f"{theirs}.attn.proj")
    for part, name in zip(("fc1", "fc2"), mlp, strict=True):
        t.linear(f"{ours}.mlp.{part}", f"{theirs}.{name}")
    if f"{theirs}.attn.logit_scale" not in t:
        t.state[f"{ours}.attention.bias.table"] = t.take(f"{theirs}.attn.relative_position_bias_table")
        return
    scale = t.take(f"{theirs}.attn.logit_scale").flatten()
    t.state[f"{ours}.attention.q_norm.weight"] = scale.clamp(max=math.log(100)).exp()
    t.state[f"{ours}.attention.k.bias"].zero_()  # which torchvision never adds
    first, second = f"{theirs}.attn.cpb_mlp.0", f"{theirs}.attn.cpb_mlp.2.weight"
    inner = F.linear(_distances(size, trained or size), t.take(f"{first}.weight"), t.take(f"{first}.bias")).relu()
    t.state[f"{ours}.attention.bias.table"] = 16 * F.linear(inner, t.take(second)).sigmoid()


def _distances(size: tuple[int, int], trained: tuple[int, int]) -> Tensor:
    """Log-spaced distances of all relative positions of a window [(2 * high - 1) * (2 * wide - 1), 2]: sign(d) *
    log2(|d| + 1) / 3, of d from -8 to 8 in the window that was trained with."""
    axes = []
    for side, of in zip(size, trained, strict=True):
        d = torch.arange(1 - side, side, dtype=torch.float32) / max(of - 1, 1) * 8
        axes.append(d.sign() * (d.abs() + 1).log2() / 3)
    return torch.cartesian_prod(*axes)


def _hugging_face_block(t: Tensors, ours: str, theirs: str) -> None:
    """As `_block`; transformers 5 has other names in memory than in its files."""
    t.norm(f"{ours}.norm1", f"{theirs}.layernorm_before")
    t.norm(f"{ours}.norm2", f"{theirs}.layernorm_after")
    memory = f"{theirs}.attention.q_proj.weight" in t
    for part, name in (("q", "query"), ("k", "key"), ("v", "value")):
        t.linear(f"{ours}.attention.{part}", f"{theirs}.attention.{f'{part}_proj' if memory else f'self.{name}'}")
    t.linear(f"{ours}.attention.out", f"{theirs}.attention.{'o_proj' if memory else 'output.dense'}")
    for part, name in (("fc1", "intermediate.dense"), ("fc2", "output.dense")):
        t.linear(f"{ours}.mlp.{part}", f"{theirs}.{f'mlp.{part}' if memory else name}")
    holder = "relative_position_bias" if memory else "self"
    t.state[f"{ours}.attention.bias.table"] = t.take(f"{theirs}.attention.{holder}.relative_position_bias_table")


def _merging(t: Tensors, block: int, theirs: str) -> None:
    """The patch merging before a block. Libraries read its 2 x 2 tokens column by column, we row by row."""
    ours = f"blocks.{block}.downsample"
    t.norm(f"{ours}.norm", f"{theirs}.norm")
    t.linear(f"{ours}.linear", f"{theirs}.reduction")
    norm, weight = f"{ours}.norm", t.state[f"{ours}.linear.weight"]
    first = [f"{norm}.weight", f"{norm}.bias"] if len(t.state[f"{norm}.weight"]) == weight.shape[-1] else []
    for name in (*first, f"{ours}.linear.weight"):
        columns = t.state[name].unflatten(-1, (2, 2, -1))
        t.state[name] = columns.transpose(-3, -2).flatten(-3)


def _widths(t: Tensors, ours: str, heads: int) -> tuple[int, int, int]:
    """Width of the stream, heads, MLP units."""
    hidden, width = t.state[f"{ours}.mlp.fc1.weight"].shape
    return width, heads, hidden


def _head(t: Tensors, theirs: str) -> None:
    if f"{theirs}.weight" in t:
        t.linear("head", theirs)
    else:
        t.identity_head(len(t.state["norm.weight"]))


def _classes(t: Tensors) -> int:
    return len(t.state["head.weight"])
