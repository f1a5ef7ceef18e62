"""Attention rollout as a further output of an exported graph: `attention` float32 [N, rows, columns].

How much of each patch has reached what the head reads (S. Abnar and W. Zuidema, "Quantifying Attention Flow in
Transformers", 2020), as `vitedge.report.attention.rollout` computes it from the model. Here it is computed backwards: a
row [N, 1, tokens] from the pool to the patches, which costs a product of a row and a matrix for each block instead of
one of two matrices.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from vitedge.export.windows import Pair, from_windows, to_windows
from vitedge.onnx_graph.editor import GraphEditor, checked
from vitedge.vit.block import Merge
from vitedge.vit.config import ViTConfig
from vitedge.vit.geometry import STRIDE
from vitedge.vit.stages import mean_table

OUTPUT = "attention"


def with_attention(model: onnx.ModelProto, config: ViTConfig) -> onnx.ModelProto:
    """A copy of the float or quantised graph of a ViT with a second output `attention`; the first stays as it is.

    Raises ValueError where no block has attention, or the output is of the patches, which the head does not join.
    """
    if "patches" in config.pool or not any(block.heads for block in config.blocks):
        raise ValueError("nothing joins the patches")
    g = GraphEditor(model)
    x = _read(g, config)
    for index in reversed(range(len(config.blocks))):
        block, tokens = config.blocks[index], config.block_tokens(index)
        if block.merge:
            x = _apart(g, f"block{index}", x, block.merge, tokens.queries, config.prefix)
        if block.heads and block.window:
            x = _through_windows(g, config, index, x)
        elif block.heads and block.reduction:
            x = _through_reduction(g, config, index, x)
        elif block.heads:
            x = _through(g, f"block{index}.attention.probs", x, tokens.keys - tokens.queries)
        elif tokens.keys > tokens.queries:
            x = _pad(g, x, tokens.keys - tokens.queries, f"rollout.block{index}")
        if block.stage:
            name, sides = f"rollout.block{index}.stage", (config.block_grid(index - 1), config.block_grid(index))
            x = _spread(g, x, name, *sides, (block.stage.kernel,) * 2, (STRIDE,) * 2, block.stage.padding)
    patches = _slice(g, x, config.prefix, config.tokens, "rollout.patches")
    # The batch's size is that of the probabilities: a row that is the same for all images would have none.
    g.op("Reshape", [patches, g.constant("rollout.shape", np.array([-1, *config.grid], np.int64))], OUTPUT)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    g.output(OUTPUT, TensorProto.FLOAT, [batch.dim_value or batch.dim_param, *config.grid])
    return checked(g.finish())


def _read(g: GraphEditor, config: ViTConfig) -> str:
    """What the heads read of the last tokens: a row [1 or N, 1, tokens]."""
    tokens = config.block_tokens(len(config.blocks) - 1).mlp
    row, pooled = np.zeros((1, 1, tokens), np.float32), ""
    for part in config.pool:
        if part == "attention":
            pooled = g.op("ReduceMean", ["pool.attention.probs", _axes(g, 1)], "rollout.pool", keepdims=0)
        elif part in config.prefix_tokens:
            row[..., config.prefix_tokens.index(part)] += 1
        else:
            row[..., config.prefix :] += np.float32(1 / config.last_patches)
    if pooled:
        return pooled
    start = g.constant("rollout.read", row)
    sizes = _last_sizes(config)
    if "mean" not in config.pool or sizes is None:
        return start
    # Of merged tokens each counts as many as it stands for; the prefix counts once, as its sizes are one.
    return g.op("Mul", [start, g.op("Transpose", [sizes], "rollout.sizes", perm=[0, 2, 1])], "rollout.read.weighted")


def _through(g: GraphEditor, probs: str, x: str, cut: int) -> str:
    """A row over the queries -> one over the keys: half by the attention, half by the residual path."""
    name = f"rollout.{probs.partition('.')[0]}"
    mean = g.op("ReduceMean", [probs, _axes(g, 1)], f"{name}.mean", keepdims=0)
    half = g.op("Mul", [x, g.constant("rollout.half", np.float32(0.5))], f"{name}.half")
    moved = g.op("MatMul", [half, mean], f"{name}.moved")
    return g.op("Add", [moved, _pad(g, half, cut, name) if cut else half], name)


def _through_windows(g: GraphEditor, config: ViTConfig, index: int, x: str) -> str:
    """As `_through`, where attention stays within windows: a row of each [N or 1, windows, 1, area]."""
    name, grid, window = f"rollout.block{index}", config.block_grid(index), config.blocks[index].window
    assert window is not None
    number = config.block_tokens(index).keys // window.area
    mean = g.op("ReduceMean", [f"block{index}.attention.probs", _axes(g, 1)], f"{name}.mean", keepdims=0)
    mean = g.op("Reshape", [mean, g.shape(-1, number, window.area, window.area)], f"{name}.images")
    half = g.op("Mul", [x, g.constant("rollout.half", np.float32(0.5))], f"{name}.half")
    tokens = g.op("Reshape", [half, g.shape(-1, math.prod(grid), 1)], f"{name}.column")
    cut = to_windows(g, tokens, (f"{name}.windows", f"{name}.windows.column"), grid, window, 1, None)
    row = g.op("Reshape", [cut, g.shape(-1, number, 1, window.area)], f"{name}.windows.row")
    moved = from_windows(g, g.op("MatMul", [row, mean], f"{name}.moved"), f"{name}.back", grid, window, 1, None)
    moved = g.op("Reshape", [moved, g.shape(-1, 1, math.prod(grid))], f"{name}.back.row")
    return g.op("Add", [moved, half], name)


def _through_reduction(g: GraphEditor, config: ViTConfig, index: int, x: str) -> str:
    """As `_through`, where keys are of fewer tokens: what goes to one is shared by those that it was made of."""
    name, grid, reduction = f"rollout.block{index}", config.block_grid(index), config.blocks[index].reduction
    assert reduction is not None
    mean = g.op("ReduceMean", [f"block{index}.attention.probs", _axes(g, 1)], f"{name}.mean", keepdims=0)
    half = g.op("Mul", [x, g.constant("rollout.half", np.float32(0.5))], f"{name}.half")
    moved = g.op("MatMul", [half, mean], f"{name}.moved")
    if reduction.fits(grid):
        block = reduction.block(grid)
        moved = _spread(g, moved, f"{name}.shared", grid, reduction.left(grid), block, block, 0)
    else:
        means = g.constant(f"{name}.means", mean_table(grid, reduction.size).numpy())
        moved = g.op("MatMul", [moved, means], f"{name}.shared")
    return g.op("Add", [moved, half], name)


def _spread(
    g: GraphEditor, x: str, name: str, before: Pair, after: Pair, kernel: Pair, stride: Pair, padding: int
) -> str:
    """A row over the tokens of the grid `after` -> one over those of `before` that a window read for each, in equal
    shares."""
    sides = list(zip(before, after, kernel, stride, strict=True))
    rows, columns = (
        [min(at * step - padding + size, side) - max(at * step - padding, 0) for at in range(new)]
        for side, new, size, step in sides
    )
    share = (1 / np.outer(rows, columns)).astype(np.float32)[None, None]
    grid = g.op("Reshape", [x, g.shape(-1, 1, *after)], f"{name}.grid")
    grid = g.op("Mul", [grid, g.constant(f"{name}.shares", share)], f"{name}.share")
    ones = g.constant(f"rollout.ones_{kernel[0]}_{kernel[1]}", np.ones((1, 1, *kernel), np.float32))
    more = [side - (step * (new - 1) + size - 2 * padding) for side, new, size, step in sides]
    window: dict[str, Any] = {
        "kernel_shape": list(kernel),
        "strides": list(stride),
        "pads": [padding] * 4,
        "output_padding": more,
    }
    grid = g.op("ConvTranspose", [grid, ones], f"{name}.back", **window)
    return g.op("Reshape", [grid, g.shape(-1, 1, math.prod(before))], name)


def _apart(g: GraphEditor, block: str, x: str, merge: Merge, tokens: int, prefix: int) -> str:
    """A row over merged tokens -> one over those that they stand for, each its share of the mean (see
    `vitedge.export.merging`, whose values are read here)."""
    name, m = f"rollout.{block}.merge", f"{block}.merge"
    if not merge.matched:
        return g.op("MatMul", [x, f"{m}.matrix"], name)
    second = (tokens - prefix) // 2
    first, gone = tokens - prefix - second, tokens - merge.left
    column = g.op("Transpose", [x], f"{name}.column", perm=[0, 2, 1])

    def part(start: int, stop: int, label: str) -> str:
        return _slice(g, column, start, stop, f"{name}.{label}", axis=1)

    share = g.op("Div", [part(prefix + first - gone, merge.left, "met"), f"{m}.size"], f"{name}.share")
    moved = g.op("MatMul", [g.op("Transpose", [f"{m}.onehot"], f"{name}.onehot", perm=[0, 2, 1]), share], f"{name}.to")
    if f"{m}.moved_n" in g.makers:
        moved = g.op("Mul", [moved, f"{m}.moved_n"], f"{name}.to.weighted")
        share = g.op("Mul", [share, f"{m}.sizes2"], f"{name}.own")
    ordered = g.op("Concat", [moved, part(prefix, prefix + first - gone, "rest")], f"{name}.ordered", axis=1)
    numbers = g.constant(f"rollout.numbers_{first}", np.arange(first)[None, :, None])
    same = g.op("Equal", [g.op("Unsqueeze", [f"{m}.order", _axes(g, 1)], f"{name}.order"), numbers], f"{name}.same")
    back = g.op("MatMul", [g.op("Cast", [same], f"{name}.places", to=TensorProto.FLOAT), ordered], f"{name}.first")
    dealt = g.op(
        "Concat", [part(0, prefix, "prefix"), back, share] if prefix else [back, share], f"{name}.dealt", axis=1
    )
    places = np.empty(tokens, np.int64)
    places[:prefix] = np.arange(prefix)
    places[prefix::2], places[prefix + 1 :: 2] = prefix + np.arange(first), prefix + first + np.arange(second)
    tidy = g.op("Gather", [dealt, g.constant(f"rollout.places_{tokens}", places)], f"{name}.tidy", axis=1)
    return g.op("Transpose", [tidy], name, perm=[0, 2, 1])


def _axes(g: GraphEditor, *numbers: int) -> str:
    return g.constant("rollout.axes_" + "_".join(map(str, numbers)), np.array(numbers, np.int64))


def _slice(g: GraphEditor, x: str, start: int, stop: int, name: str, axis: int = 2) -> str:
    return g.op("Slice", [x, _axes(g, start), _axes(g, stop), _axes(g, axis)], name)


def _pad(g: GraphEditor, x: str, count: int, name: str) -> str:
    """Zeros after a row's end."""
    return g.op("Pad", [x, _axes(g, 0, 0, 0, 0, 0, count)], f"{name}.padded")


def _last_sizes(config: ViTConfig) -> str | None:
    """How many tokens each of the last ones stands for, [1 or N, tokens, 1]; None where none was merged."""
    last = next((k for k in reversed(range(len(config.blocks))) if config.blocks[k].merge), None)
    return None if last is None else f"block{last}.merge.sizes"
