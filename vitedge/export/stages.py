"""What begins a stage and what reduces keys and values, as ONNX nodes: see `vit.stages`."""

from __future__ import annotations

import math

from vitedge.export.activations import ACTIVATIONS
from vitedge.export.stem import Weights, convolution
from vitedge.export.windows import Pair, to_blocks
from vitedge.onnx_graph.builder import GraphBuilder
from vitedge.vit.config import ViTConfig
from vitedge.vit.geometry import STRIDE, Stage
from vitedge.vit.stages import mean_table


def layer_norm(g: GraphBuilder, w: Weights, key: str, x: str, name: str, eps: float) -> str:
    """LayerNorm over the last axis."""
    scale = g.constant(f"{name}.scale", w[f"{key}.weight"])
    bias = g.constant(f"{name}.bias", w[f"{key}.bias"])
    return g.op("LayerNormalization", [x, scale, bias], name, axis=-1, epsilon=eps)


def to_grid(g: GraphBuilder, x: str, names: tuple[str, str], grid: Pair, width: int, batch: int | None) -> str:
    """Tokens [N, rows * columns, C] -> [N, C, rows, columns]; names: of what is made on the way, and of the result."""
    x = g.op("Transpose", [x], names[0], perm=[0, 2, 1])
    return g.op("Reshape", [x, g.shape(batch or -1, width, *grid)], names[1])


def from_grid(g: GraphBuilder, x: str, names: tuple[str, str], grid: Pair, width: int, batch: int | None) -> str:
    """The inverse of `to_grid`."""
    x = g.op("Reshape", [x, g.shape(batch or -1, width, math.prod(grid))], names[0])
    return g.op("Transpose", [x], names[1], perm=[0, 2, 1])


def downsample(g: GraphBuilder, config: ViTConfig, w: Weights, index: int, x: str, batch: int | None) -> str:
    """The tokens of the stage that begins with block `index`, from those of the one before."""
    name, key, width = f"block{index}.downsample", f"blocks.{index}.downsample", config.block_width(index - 1)
    stage = config.blocks[index].stage
    assert stage is not None
    if stage.overlaps:
        return _conv_downsample(g, config, stage, w, index, x, batch)
    x = to_blocks(g, x, name, config.block_grid(index - 1), (2, 2), width, batch)
    x = g.op("Reshape", [x, g.shape(batch or -1, config.block_tokens(index).mlp, 4 * width)], f"{name}_joined")
    if config.post_norm:
        x = g.linear(x, name, w[f"{key}.linear.weight"], w[f"{key}.linear.bias"])
        return layer_norm(g, w, f"{key}.norm", x, f"{name}_norm", config.norm_eps)
    x = layer_norm(g, w, f"{key}.norm", x, f"{name}_norm", config.norm_eps)
    return g.linear(x, name, w[f"{key}.linear.weight"], w[f"{key}.linear.bias"])


def _conv_downsample(
    g: GraphBuilder, config: ViTConfig, stage: Stage, w: Weights, index: int, x: str, batch: int | None
) -> str:
    name, key, before = f"block{index}.downsample", f"blocks.{index}.downsample", config.block_width(index - 1)
    x = layer_norm(g, w, f"{key}.norm_input", x, f"{name}_input.tokens", config.norm_eps)
    x = to_grid(g, x, (f"{name}_input.rows", f"{name}_input"), config.block_grid(index - 1), before, batch)
    weight, bias = w[f"{key}.conv.weight"], w[f"{key}.conv.bias"]
    # Its bias is the convolution's own: `name` is what stands behind the transpose, where every reader finds tokens.
    x = convolution(g, x, f"{name}", weight, bias, STRIDE, (stage.padding,) * 4, result=f"{name}.conv")
    x = from_grid(g, x, (f"{name}.flat", name), config.block_grid(index), stage.width, batch)
    return layer_norm(g, w, f"{key}.norm", x, f"{name}_norm", config.behind_conv)


def reduced(g: GraphBuilder, config: ViTConfig, w: Weights, index: int, x: str, batch: int | None) -> str:
    """What keys and values of block `index` are made of, [N, left, C]; x: what its queries are, [N, tokens, C]."""
    name, key = f"block{index}.attention.reduce", f"blocks.{index}.attention.reduction"
    reduction, grid, width = config.blocks[index].reduction, config.block_grid(index), config.block_width(index)
    assert reduction is not None
    left = math.prod(reduction.left(grid))
    if not reduction.fits(grid):
        means = g.constant(f"{name}.means_{grid[0]}_{grid[1]}", mean_table(grid, reduction.size).numpy())
        x = g.op("MatMul", [means, x], f"{name}_input")
    elif (block := reduction.block(grid)) == (1, 1):
        x = g.op("Identity", [x], f"{name}_input")
    else:
        x = to_blocks(g, x, f"{name}_input", grid, block, width, batch)
        if reduction.pooled:
            area = math.prod(block)
            first = -1 if batch is None else batch * left
            x = g.op("Reshape", [x, g.shape(first, area, width)], f"{name}_input.parts")
            x = g.op("ReduceMean", [x, g.shape(1)], f"{name}_input.means", keepdims=0)
        x = g.op("Reshape", [x, g.shape(batch or -1, left, reduction.joined * width)], f"{name}_input")
    x = g.linear(x, name, w[f"{key}.linear.weight"], w[f"{key}.linear.bias"])
    x = layer_norm(g, w, f"{key}.norm", x, f"{name}_norm", config.behind_conv)
    if reduction.pooled:
        x = ACTIVATIONS["gelu"](g, x, f"{name}_gelu")
    return x
