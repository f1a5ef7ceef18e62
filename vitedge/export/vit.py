"""The ViT as an ONNX graph, written node by node from its weights.

Written by hand and not traced, so that every compiler meets the patterns it fuses (MatMul-Softmax-MatMul,
LayerNormalization, the erf form of GELU), and every value has the name of its `Site` in the model.
Input `pixels` uint8 [N, H, W, C], output `logits` float32 [N, classes].

Exact cuts: after its k and v, the last block computes [CLS] alone, since nothing else reaches the head.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto

from vitedge.data.preprocess import Preprocess
from vitedge.export.graph import GraphBuilder
from vitedge.export.merging import Sizes, merge_tokens
from vitedge.vit.config import BlockConfig, ViTConfig

Weights = dict[str, np.ndarray]


def fold_normalization(
    weight: np.ndarray, bias: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Patch embedding for raw pixels 0..255 out of one for normalised images; exact, since it has no padding.

    weight [width, channels, p, p], bias [width]; ((x / 255) - mean) / std goes into both (in float64).
    """
    m, s = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    w = weight.astype(np.float64) / s[None, :, None, None]
    b = bias.astype(np.float64) - (w * m[None, :, None, None]).sum((1, 2, 3))
    return (w / 255).astype(np.float32), b.astype(np.float32)


def export_vit(config: ViTConfig, weights: Weights, preprocess: Preprocess, batch: int | None = 1) -> onnx.ModelProto:
    """The graph of the ViT with these weights (`Architecture.state_dict()` as numpy).

    batch: the static batch size, or None for a free dimension `batch`.
    """
    g = GraphBuilder("vit")
    n: int | str = "batch" if batch is None else batch
    pixels = g.input("pixels", TensorProto.UINT8, [n, *config.image_size, config.channels])
    x = _embed(g, config, weights, preprocess, pixels, batch)
    sizes: Sizes | None = None
    for i, block in enumerate(config.blocks):
        x, sizes = _block(g, config, block, weights, i, x, sizes, batch, cls_only=config.queries(i) is not None)
    if config.blocks[-1].heads == 0:
        x = _take_cls(g, x, "cls")
    x = g.op("Reshape", [x, g.shape(batch or -1, config.width)], "cls.flat")
    x = _norm(g, config, weights, "norm", x, "norm")
    logits = g.linear(x, "head", weights["head.weight"], weights["head.bias"])
    g.nodes[-1].output[0] = "logits"
    assert logits == "head"
    g.output("logits", TensorProto.FLOAT, [n, config.classes])
    return g.build()


def _embed(
    g: GraphBuilder, config: ViTConfig, w: Weights, preprocess: Preprocess, pixels: str, batch: int | None
) -> str:
    weight, bias = fold_normalization(w["patch_embed.weight"], w["patch_embed.bias"], preprocess.mean, preprocess.std)
    x = g.op("Cast", [pixels], "pixels.float", to=TensorProto.FLOAT)
    x = g.op("Transpose", [x], "pixels.nchw", perm=[0, 3, 1, 2])
    p = config.patch_size
    x = g.op(
        "Conv",
        [x, g.constant("patch_embed.weight", weight), g.constant("patch_embed.bias", bias)],
        "patch_embed",
        kernel_shape=[p, p],
        strides=[p, p],
    )
    x = g.op("Reshape", [x, g.shape(batch or -1, config.width, config.patches)], "patch_embed.flat")
    x = g.op("Transpose", [x], "patches", perm=[0, 2, 1])
    # [CLS]'s token and position are one constant row; the patches get their positions before they are joined.
    position = w["pos_embedding"]
    cls = g.constant("cls_token", (w["class_token"] + position[:, :1]).astype(np.float32))
    if batch != 1:
        # Concat wants its batch: repeat the row, by the size of the patches where the batch is free.
        cls = _repeat_rows(g, cls, x, config, batch)
    x = g.op("Add", [x, g.constant("pos_embedding", position[:, 1:])], "patches.positioned")
    return g.op("Concat", [cls, x], "embed", axis=1)


def _repeat_rows(g: GraphBuilder, cls: str, like: str, config: ViTConfig, batch: int | None) -> str:
    if batch is not None:
        return g.op("Expand", [cls, g.shape(batch, 1, config.width)], "cls_token.batch")
    size = g.op("Shape", [like], "batch.size", start=0, end=1)
    shape = g.op("Concat", [size, g.shape(1, config.width)], "cls_token.shape", axis=0)
    return g.op("Expand", [cls, shape], "cls_token.batch")


def _take_cls(g: GraphBuilder, x: str, name: str) -> str:
    """[N, tokens, C] -> [N, 1, C]."""
    return g.op("Slice", [x, g.shape(0), g.shape(1), g.shape(1)], name)


def _norm(g: GraphBuilder, config: ViTConfig, w: Weights, key: str, x: str, name: str) -> str:
    scale = g.constant(f"{name}.scale", w[f"{key}.weight"])
    bias = g.constant(f"{name}.bias", w[f"{key}.bias"])
    return g.op("LayerNormalization", [x, scale, bias], name, axis=-1, epsilon=config.norm_eps)


def _block(
    g: GraphBuilder,
    config: ViTConfig,
    block: BlockConfig,
    w: Weights,
    index: int,
    x: str,
    sizes: Sizes | None,
    batch: int | None,
    *,
    cls_only: bool,
) -> tuple[str, Sizes | None]:
    name, key = f"block{index}", f"blocks.{index}"
    if block.heads:
        normed = _norm(g, config, w, f"{key}.norm1", x, f"{name}.norm1")
        queries = _take_cls(g, normed, f"{name}.norm1.cls") if cls_only else normed
        residual = _take_cls(g, x, f"{name}.cls") if cls_only else x
        out = _attention(g, config, block, w, index, queries, normed, sizes, batch)
        x = g.op("Add", [residual, out], f"{name}.residual1")
    elif cls_only:
        x = _take_cls(g, x, f"{name}.cls")
    if block.merge:
        shape = config.block_tokens(index).queries, config.width
        x, sizes = merge_tokens(g, name, x, sizes, block.merge, shape, config.prefix, batch == 1)
    if block.hidden:
        normed = _norm(g, config, w, f"{key}.norm2", x, f"{name}.norm2")
        x = g.op("Add", [x, _mlp(g, block, w, index, normed)], f"{name}.residual2")
    return x, sizes


def _attention(
    g: GraphBuilder,
    config: ViTConfig,
    block: BlockConfig,
    w: Weights,
    index: int,
    queries: str,
    normed: str,
    sizes: Sizes | None,
    batch: int | None,
) -> str:
    name, key = f"block{index}.attention", f"blocks.{index}.attention"
    heads, n = block.heads, batch or -1
    tokens, length, _ = config.block_tokens(index)

    def project(part: str, x: str, factor: float = 1.0) -> str:
        weight, bias = w[f"{key}.{part}.weight"], w[f"{key}.{part}.bias"]
        return g.linear(x, f"{name}.{part}", (weight * np.float32(factor)), (bias * np.float32(factor)))

    def split(part: str, x: str, tokens: int, dim: int, perm: list[int], last: str) -> str:
        x = g.op("Reshape", [x, g.shape(n, tokens, heads, dim)], f"{name}.{part}.split")
        return g.op("Transpose", [x], f"{name}.{part}.{last}", perm=perm)

    # The scale goes into q's weights: one operator fewer, and what fused kernels want.
    q = split("q", project("q", queries, block.scale), length, block.qk_dim, [0, 2, 1, 3], "heads")
    k = split("k", project("k", normed), tokens, block.qk_dim, [0, 2, 3, 1], "transposed")
    v = split("v", project("v", normed), tokens, block.v_dim, [0, 2, 1, 3], "heads")
    scores = g.op("MatMul", [q, k], f"{name}.scores")
    if sizes is not None:
        scores = g.op("Add", [scores, sizes.log], f"{name}.scores.weighted")
    probs = g.op("Softmax", [scores], f"{name}.probs", axis=-1)
    context = g.op("MatMul", [probs, v], f"{name}.context.heads")
    context = g.op("Transpose", [context], f"{name}.context.joined", perm=[0, 2, 1, 3])
    context = g.op("Reshape", [context, g.shape(n, length, heads * block.v_dim)], f"{name}.context")
    return project("out", context)


def _mlp(g: GraphBuilder, block: BlockConfig, w: Weights, index: int, x: str) -> str:
    """fc1, GELU, fc2. Each group of units is a branch of its own, and the branches are summed."""
    name, key = f"block{index}.mlp", f"blocks.{index}.mlp"
    groups = block.groups or (block.hidden,)
    start, total = 0, ""
    for number, size in enumerate(groups):
        suffix = f".{number}" if len(groups) > 1 else ""
        units = slice(start, start + size)
        w1, b1 = w[f"{key}.fc1.weight"][units], w[f"{key}.fc1.bias"][units]
        hidden = g.linear(x, f"{name}.fc1{suffix}", w1, b1)
        hidden = _gelu(g, hidden, f"{name}.gelu{suffix}")
        weight = w[f"{key}.fc2.weight"][:, units]
        if number == 0:
            total = g.linear(hidden, f"{name}.fc2{suffix}", weight, w[f"{key}.fc2.bias"])
        else:
            product = g.op(
                "MatMul", [hidden, g.constant(f"{name}.fc2{suffix}.weight", weight.T)], f"{name}.fc2{suffix}"
            )
            last = number == len(groups) - 1
            total = g.op("Add", [total, product], f"{name}.fc2" if last else f"{name}.fc2.sum{number}")
        start += size
    return total


def _gelu(g: GraphBuilder, x: str, name: str) -> str:
    """x * (1 + erf(x / sqrt(2))) * 0.5 in the order of operators that compilers recognise as GELU."""
    y = g.op("Div", [x, g.constant("sqrt2", np.float32(math.sqrt(2)))], f"{name}.div")
    y = g.op("Erf", [y], f"{name}.erf")
    y = g.op("Add", [y, g.constant("one", np.float32(1))], f"{name}.add")
    y = g.op("Mul", [x, y], f"{name}.mul")
    return g.op("Mul", [y, g.constant("half", np.float32(0.5))], name)
