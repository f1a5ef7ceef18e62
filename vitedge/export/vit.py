"""The ViT as an ONNX graph, written node by node from its weights.

Written by hand and not traced, so that every compiler meets the patterns it fuses (MatMul-Softmax-MatMul,
LayerNormalization, the erf form of GELU), and every value has the name of its `Site` in the model.
Input `pixels` uint8 [N, H, W, C], output `logits` float32 [N, classes].

Exact cuts: after its k and v, the last block computes only the tokens that the pool reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from vitedge.data.preprocess import Preprocess
from vitedge.export.merging import Sizes, merge_tokens
from vitedge.export.mlp import mlp
from vitedge.export.stages import downsample, layer_norm, reduced
from vitedge.export.stem import Weights, convolution, export_stem
from vitedge.export.windows import from_windows, scores_bias, to_windows
from vitedge.onnx_graph.builder import GraphBuilder
from vitedge.vit.block import BlockConfig
from vitedge.vit.config import ViTConfig
from vitedge.vit.rope import rope_table


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
        x, sizes = _block(g, config, block, weights, i, x, sizes, batch)
    _head(g, config, weights, x, sizes, batch)
    g.nodes[-1].output[0] = "logits"
    g.output(
        "logits", TensorProto.FLOAT, [n, *([config.last_patches] if "patches" in config.pool else []), config.classes]
    )
    return g.build()


def _head(g: GraphBuilder, config: ViTConfig, w: Weights, x: str, sizes: Sizes | None, batch: int | None) -> str:
    """The stream after the last block -> logits: final LayerNorm, pooling and heads."""
    n, queries = batch or -1, config.queries(len(config.blocks) - 1)
    if queries is not None and config.blocks[-1].heads == 0:
        x = _rows(g, x, 0, queries, "cls")
    if len(config.pool) == 1 and queries is not None:
        if queries > 1:
            x = _rows(g, x, queries - 1, queries, "pool.row")
        x = g.op("Reshape", [x, g.shape(n, config.last_width)], "cls.flat")
    elif config.pool_norm == "pooled":
        x = _mean(g, config, x, sizes)
    x = _norm(g, config, w, "norm", x, "norm")
    flat = config.pool_norm == "pooled" or (len(config.pool) == 1 and queries is not None)
    parts = [x] if flat else [_part(g, config, w, part, x, sizes, batch) for part in config.pool]
    total = ""
    for number, (name, part) in enumerate(zip(config.heads(), parts, strict=True)):
        key = name if number == 0 else f"heads.{number - 1}"
        y = g.linear(part, name, w[f"{key}.weight"], w[f"{key}.bias"])
        total = y if number == 0 else g.op("Add", [total, y], f"{name}.sum")
    if "attention" in config.pool or len(config.pool) > 1:
        total = g.op("Reshape", [total, g.shape(n, config.classes)], "head.flat")
    if config.normalize:
        # Not ReduceL2, which RKNN's compiler has not.
        square = g.op("ReduceSum", [g.op("Mul", [total, total], "head.square"), g.shape(-1)], "head.energy", keepdims=1)
        total = g.op("Div", [total, g.op("Sqrt", [square], "head.norm")], "head.normal")
    return total


def _part(
    g: GraphBuilder, config: ViTConfig, w: Weights, part: str, x: str, sizes: Sizes | None, batch: int | None
) -> str:
    """What one head reads of the normalised stream: [N, 1, C], [N, patches, C], or the mean alone [N, C]."""
    if part == "mean":
        return _mean(g, config, x, sizes)
    if part == "patches":
        return _rows(g, x, config.prefix, config.tokens, "pool.patches") if config.prefix else x
    if part == "attention":
        assert config.pool_block is not None
        return _attention_pool(g, config, config.pool_block, w, x, sizes, batch)
    index = config.prefix_tokens.index(part)
    return _rows(g, x, index, index + 1, f"pool.{part}")


def _mean(g: GraphBuilder, config: ViTConfig, x: str, sizes: Sizes | None) -> str:
    """The mean of the patches, of merged tokens by their sizes: [N, C], or [N, 1, C] where it is not alone."""
    keep = int(len(config.pool) > 1)
    if sizes is not None:
        x = g.op("Mul", [x, sizes.value], "pool.weighted")
    if config.prefix:
        x = _rows(g, x, config.prefix, config.tokens, "pool.patches")
    if sizes is None:
        return g.op("ReduceMean", [x, g.shape(1)], "pool.mean", keepdims=keep)
    x = g.op("ReduceSum", [x, g.shape(1)], "pool.sum", keepdims=keep)
    return g.op("Mul", [x, g.constant("pool.share", np.float32(1 / config.last_patches))], "pool.mean")


def _attention_pool(
    g: GraphBuilder, config: ViTConfig, block: BlockConfig, w: Weights, x: str, sizes: Sizes | None, batch: int | None
) -> str:
    """The attention pool's token [N, 1, C] from the normalised stream; its query is a constant."""
    tokens = config.block_tokens(len(config.blocks) - 1).mlp
    a = _Attention(g, block, w, "pool.attention", "pooling.attention", batch or -1, config)
    query = w["pooling.attention.q.value"].reshape(block.heads, block.qk_dim) * np.float32(block.scale)
    x = a.attend(a.constant_scores(x, tokens, query), a.values(x, tokens), sizes, 1)
    normed = _norm(g, config, w, "pooling.norm2", x, "pool.norm2")
    return g.op("Add", [x, mlp(g, block, w, "pool.mlp", "pooling.mlp", normed)], "pool.residual2")


def _embed(
    g: GraphBuilder, config: ViTConfig, w: Weights, preprocess: Preprocess, pixels: str, batch: int | None
) -> str:
    weight, bias = w["patch_embed.weight"], w["patch_embed.bias"]
    x = g.op("Cast", [pixels], "pixels.float", to=TensorProto.FLOAT)
    x = g.op("Transpose", [x], "pixels.nchw", perm=[0, 3, 1, 2])
    if config.stem is not None:
        x = export_stem(g, config, w, preprocess, x, batch)
    else:
        weight, bias = fold_normalization(weight, bias, preprocess.mean, preprocess.std)
        p = config.patch_size
        x = convolution(g, x, "patch_embed", weight, bias, p)
    x = g.op("Reshape", [x, g.shape(batch or -1, config.width, config.patches)], "patch_embed.flat")
    x = g.op("Transpose", [x], "patches", perm=[0, 2, 1])
    # Prefix tokens and their positions are constant rows; the patches get their positions before they are joined.
    position, cls = w["pos_embedding"] if config.positions else None, ""
    if config.prefix:
        rows = w["class_token"] if position is None else w["class_token"] + position[:, : config.prefix]
        cls = g.constant("cls_token", rows.astype(np.float32))
        if batch != 1:
            # Concat wants its batch: repeat the rows, by the size of the patches where the batch is free.
            cls = _repeat_rows(g, cls, x, config, batch)
    if position is not None:
        last = "patches.positioned" if config.prefix else "embed"
        x = g.op("Add", [x, g.constant("pos_embedding", position[:, config.prefix :])], last)
    if config.prefix:
        x = g.op("Concat", [cls, x], "embed", axis=1)
    if config.norm_pre:
        x = layer_norm(g, w, "pre_norm", x, "pre_norm", config.behind_conv)
    return g.linear(x, "pre", w["pre.weight"], w["pre.bias"]) if config.pre_linear else x


def _repeat_rows(g: GraphBuilder, cls: str, like: str, config: ViTConfig, batch: int | None) -> str:
    if batch is not None:
        return g.op("Expand", [cls, g.shape(batch, config.prefix, config.width)], "cls_token.batch")
    size = g.op("Shape", [like], "batch.size", start=0, end=1)
    shape = g.op("Concat", [size, g.shape(config.prefix, config.width)], "cls_token.shape", axis=0)
    return g.op("Expand", [cls, shape], "cls_token.batch")


def _rows(g: GraphBuilder, x: str, start: int, stop: int, name: str) -> str:
    """[N, tokens, C] -> [N, stop - start, C]."""
    return g.op("Slice", [x, g.shape(start), g.shape(stop), g.shape(1)], name)


def _norm(g: GraphBuilder, config: ViTConfig, w: Weights, key: str, x: str, name: str) -> str:
    return layer_norm(g, w, key, x, name, config.norm_eps)


def _gate(g: GraphBuilder, w: Weights, key: str, x: str, name: str) -> str:
    """[N, tokens, C] -> [N, tokens, 1] between 0 and 1."""
    gate = g.linear(x, f"{name}.gate", w[f"{key}.gate.weight"], w[f"{key}.gate.bias"])
    zero, one = g.constant("zero", np.float32(0)), g.constant("one", np.float32(1))
    return g.op("Clip", [gate, zero, one], f"{name}.gate.clipped")


def _register(g: GraphBuilder, w: Weights, key: str, x: str, name: str) -> str:
    """Marked tokens as a constant row: see `vit.layers.Register`."""
    x = g.op("Mul", [x, _gate(g, w, key, x, name)], f"{name}.gated")
    return g.op("Add", [x, g.constant(f"{name}.register", w[f"{key}.row"])], name)


def _marker(g: GraphBuilder, w: Weights, key: str, x: str, name: str) -> str:
    """What marks sink tokens: see `vit.layers.Marker`."""
    return g.op("Mul", [_gate(g, w, key, x, name), g.constant(f"{name}.mark", w[f"{key}.row"])], f"{name}.marked")


def _block(
    g: GraphBuilder,
    config: ViTConfig,
    block: BlockConfig,
    w: Weights,
    index: int,
    x: str,
    sizes: Sizes | None,
    batch: int | None,
) -> tuple[str, Sizes | None]:
    name, key = f"block{index}", f"blocks.{index}"
    if block.stage:
        x = downsample(g, config, w, index, x, batch)
    tokens, length = config.block_tokens(index)[:2]
    cut = config.queries(index) is not None
    if block.heads and block.window:
        attended = _window_attention(g, config, w, index, x, batch)
        x = g.op("Add", [x, attended], f"{name}.residual1")
    elif block.heads:
        normed = _norm(g, config, w, f"{key}.norm1", x, f"{name}.norm1" + (".raw" if block.register else ""))
        if block.register:
            normed = _register(g, w, f"{key}.norm1_register", normed, f"{name}.norm1")
        queries = _rows(g, normed, 0, length, f"{name}.norm1.cls") if cut else normed
        residual = _rows(g, x, 0, length, f"{name}.cls") if cut else x
        a = _Attention(g, block, w, f"{name}.attention", f"{key}.attention", batch or -1, config)
        read = reduced(g, config, w, index, normed, batch) if block.reduction else normed
        q, k, v = a.queries(queries, length), a.keys(read, tokens), a.values(read, tokens)
        out = a.attend(g.op("MatMul", [q, k], f"{name}.attention.scores"), v, sizes, length)
        x = g.op("Add", [residual, out], f"{name}.residual1")
    elif cut:
        x = _rows(g, x, 0, length, f"{name}.cls")
    if block.merge:
        shape = config.block_tokens(index).queries, config.width
        x, sizes = merge_tokens(g, name, x, sizes, block.merge, shape, config.prefix, batch == 1)
    if block.hidden and block.post_norm:
        # The stream as the MLP reads it, which may be rounded, has a name of its own.
        read = g.op("Identity", [x], f"{name}.{block.reads[1]}")
        written = mlp(g, block, w, f"{name}.mlp", f"{key}.mlp", read)
        x = g.op("Add", [x, _norm(g, config, w, f"{key}.norm2", written, f"{name}.norm2")], f"{name}.residual2")
    elif block.hidden:
        normed = _norm(g, config, w, f"{key}.norm2", x, f"{name}.norm2")
        written = mlp(g, block, w, f"{name}.mlp", f"{key}.mlp", normed, (config.block_grid(index), batch))
        if block.marker:
            mark = _marker(g, w, f"{key}.norm2_marker", normed, f"{name}.norm2")
            written = g.op("Add", [written, mark], f"{name}.written")
        x = g.op("Add", [x, written], f"{name}.residual2")
    return x, sizes


def _window_attention(g: GraphBuilder, config: ViTConfig, w: Weights, index: int, x: str, batch: int | None) -> str:
    """What attention within windows adds to the stream [N, tokens, C]."""
    name, key, block = f"block{index}", f"blocks.{index}", config.blocks[index]
    grid, width, window = config.block_grid(index), config.block_width(index), block.window
    assert window is not None
    number = config.block_tokens(index).keys // window.area
    normed = x if block.post_norm else _norm(g, config, w, f"{key}.norm1", x, f"{name}.norm1.raw")
    normed = to_windows(g, normed, (f"{name}.windows", f"{name}.{block.reads[0]}"), grid, window, width, batch)
    a = _Attention(
        g, block, w, f"{name}.attention", f"{key}.attention", -1 if batch is None else batch * number, config
    )
    q, k, v = (make(normed, window.area) for make in (a.queries, a.keys, a.values))
    scores = g.op("MatMul", [q, k], f"{name}.attention.scores")
    bias = scores_bias(w[f"{key}.attention.bias.table"], grid, window)
    apart = len(bias) > 1 and batch != 1
    if apart:
        # Each window of an image has a bias of its own, and each image all of them: windows and heads become one axis.
        bias = bias.reshape(1, -1, window.area, window.area)
        scores = g.op("Reshape", [scores, g.shape(batch or -1, *bias.shape[1:])], f"{name}.attention.scores.images")
    scores = g.op("Add", [scores, g.constant(f"{name}.attention.bias", bias)], f"{name}.attention.scores.biased")
    if apart:
        shape = g.shape(a.n, block.heads, window.area, window.area)
        scores = g.op("Reshape", [scores, shape], f"{name}.attention.scores.windows")
    out = a.attend(scores, v, None, window.area)
    out = from_windows(g, out, f"{name}.attention.out", grid, window, width, batch)
    return _norm(g, config, w, f"{key}.norm1", out, f"{name}.norm1") if block.post_norm else out


@dataclass(frozen=True)
class _Attention:
    """One attention: `name` in the graph, `key` in the weights; n: the batch, -1 where it is free."""

    g: GraphBuilder
    block: BlockConfig
    w: Weights
    name: str
    key: str
    n: int
    config: ViTConfig

    def project(self, part: str, x: str, factor: float = 1.0) -> str:
        weight, bias = self.w[f"{self.key}.{part}.weight"], self.w[f"{self.key}.{part}.bias"]
        return self.g.linear(x, f"{self.name}.{part}", weight * np.float32(factor), bias * np.float32(factor))

    def queries(self, x: str, tokens: int) -> str:
        # The scale goes into q's weights: one operator fewer, and what fused kernels want.
        scale = 1.0 if self.block.qk_norm else self.block.scale
        return self._heads("q", self.project("q", x, scale), tokens, self.block.qk_dim, [0, 2, 1, 3], "heads")

    def keys(self, x: str, tokens: int) -> str:
        return self._heads("k", self.project("k", x), tokens, self.block.qk_dim, [0, 2, 3, 1], "transposed")

    def values(self, x: str, tokens: int) -> str:
        return self._heads("v", self.project("v", x), tokens, self.block.v_dim, [0, 2, 1, 3], "heads")

    def _heads(self, part: str, x: str, tokens: int, dim: int, perm: list[int], last: str) -> str:
        g, name = self.g, f"{self.name}.{part}"
        x = g.op("Reshape", [x, g.shape(self.n, tokens, self.block.heads, dim)], f"{name}.split")
        if part != "v" and self.block.qk_norm:
            factor = np.float32(self.block.scale if part == "q" else 1)
            scale = g.constant(f"{name}_norm.scale", self.w[f"{self.key}.{part}_norm.weight"] * factor)
            bias = g.constant(f"{name}_norm.bias", self.w[f"{self.key}.{part}_norm.bias"] * factor)
            eps = self.config.norm_eps
            x = g.op("LayerNormalization", [x, scale, bias], f"{name}_norm", axis=-1, epsilon=eps)
        if part != "v" and self.block.cosine:
            x = self._unit(part, x, f"{name}_norm")
        if part != "v" and self.block.rope:
            x = _turned(g, self.config, x, tokens, f"{name}_rope")
        return g.op("Transpose", [x], f"{name}.{last}", perm=perm)

    def _unit(self, part: str, x: str, name: str) -> str:
        """[N, tokens, heads, dim] with each head's vector scaled to a norm of 1, q's times a number a head."""
        g = self.g
        square = g.op("ReduceSum", [g.op("Mul", [x, x], f"{name}.square"), g.shape(-1)], f"{name}.energy", keepdims=1)
        # The tiny addend keeps the zeros that complete a window from being divided by zero.
        square = g.op("Add", [square, g.constant("tiny", np.float32(1e-24))], f"{name}.positive")
        length = g.op("Sqrt", [square], f"{name}.length")
        if part == "k":
            return g.op("Div", [x, length], name)
        x = g.op("Div", [x, length], f"{name}.direction")
        scale = self.w[f"{self.key}.q_norm.weight"][:, None]
        return g.op("Mul", [x, g.constant(f"{name}.scale", scale)], name)

    def constant_scores(self, x: str, tokens: int, query: np.ndarray) -> str:
        """Scores of one query [heads, dim], the same for every image. As keys times it, and not the other way round:
        RKNN's compiler fuses MatMul-Softmax-MatMul, and fails where the first factor is a constant."""
        g, name = self.g, self.name
        k = self._heads("k", self.project("k", x), tokens, self.block.qk_dim, [0, 2, 1, 3], "heads")
        column = g.op("MatMul", [k, g.constant(f"{name}.query", query[None, :, :, None])], f"{name}.scores.column")
        return g.op("Transpose", [column], f"{name}.scores", perm=[0, 1, 3, 2])

    def attend(self, scores: str, v: str, sizes: Sizes | None, length: int) -> str:
        """The output projection of `length` queries [N, length, C]."""
        g, name = self.g, self.name
        if sizes is not None:
            scores = g.op("Add", [scores, sizes.log], f"{name}.scores.weighted")
        probs = g.op("Softmax", [scores], f"{name}.probs", axis=-1)
        context = g.op("MatMul", [probs, v], f"{name}.context.heads")
        context = g.op("Transpose", [context], f"{name}.context.joined", perm=[0, 2, 1, 3])
        shape = g.shape(self.n, length, self.block.heads * self.block.v_dim)
        return self.project("out", g.op("Reshape", [context, shape], f"{name}.context"))


def _turned(g: GraphBuilder, config: ViTConfig, x: str, tokens: int, name: str) -> str:
    """[N, tokens, heads, dim] with its pairs of dims turned by each token's place, by constants (see `vit.rope`)."""
    table = rope_table(config)
    assert table is not None
    cosines, sines = table[:, :tokens, None].numpy()
    dim = cosines.shape[-1]
    parts = [f"{name}.first", f"{name}.second"]
    g.op("Split", [x, g.shape(dim // 2, dim // 2)], parts, axis=-1)
    swapped = g.op("Concat", parts[::-1], f"{name}.swapped", axis=-1)
    direct = g.op("Mul", [x, g.constant(f"rope.cosines_{tokens}", cosines)], f"{name}.direct")
    swapped = g.op("Mul", [swapped, g.constant(f"rope.sines_{tokens}", sines)], f"{name}.cross")
    return g.op("Add", [direct, swapped], name)
