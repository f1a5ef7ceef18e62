"""An MLP as operators, and what filters its units on the grid of tokens."""

from __future__ import annotations

import numpy as np

from vitedge.export.activations import ACTIVATIONS
from vitedge.export.stages import from_grid, to_grid
from vitedge.export.stem import Weights, convolution
from vitedge.export.windows import Pair
from vitedge.onnx_graph.builder import GraphBuilder
from vitedge.vit.block import BlockConfig


def mlp(
    g: GraphBuilder,
    block: BlockConfig,
    w: Weights,
    name: str,
    key: str,
    x: str,
    place: tuple[Pair, int | None] = ((0, 0), 1),
) -> str:
    """fc1, activation, fc2. Each group of units is a branch of its own, and the branches are summed.

    place: the grid of tokens and the batch, which depthwise convolutions want.
    """
    total, spans = "", block.spans()
    for number, (suffix, start, end) in enumerate(spans):
        units = slice(start, end)

        def first(part: str, suffix: str = suffix, units: slice = units) -> str:
            weight, bias = w[f"{key}.{part}.weight"][units], w[f"{key}.{part}.bias"][units]
            return g.linear(x, f"{name}.{part}{suffix}", weight, bias)

        hidden = first("fc1")
        if block.depthwise:
            filters = w[f"{key}.depthwise.weight"][units], w[f"{key}.depthwise.bias"][units]
            hidden = _depthwise(g, hidden, f"{name}.depthwise", suffix, *filters, *place, relu=block.relu)
        if block.gated:
            gate = ACTIVATIONS[block.act](g, first("gate"), f"{name}.act{suffix}")
            hidden = g.op("Mul", [hidden, gate], f"{name}.gelu{suffix}")
        else:
            hidden = ACTIVATIONS[block.act](g, hidden, f"{name}.gelu{suffix}")
        weight = w[f"{key}.fc2.weight"][:, units]
        if number == 0:
            total = g.linear(hidden, f"{name}.fc2{suffix}", weight, w[f"{key}.fc2.bias"])
        else:
            product = g.op(
                "MatMul", [hidden, g.constant(f"{name}.fc2{suffix}.weight", weight.T)], f"{name}.fc2{suffix}"
            )
            last = number == len(spans) - 1
            total = g.op("Add", [total, product], f"{name}.fc2" if last else f"{name}.fc2.sum{number}")
    return total


def _depthwise(
    g: GraphBuilder,
    x: str,
    name: str,
    suffix: str,
    weight: np.ndarray,
    bias: np.ndarray,
    grid: Pair,
    batch: int | None,
    *,
    relu: bool,
) -> str:
    """Each unit of [N, tokens, units] filtered on the grid by its 3 x 3 weights [units, 1, 3, 3]."""
    result, inner = f"{name}{suffix}", f"{name}.grid{suffix}"
    if relu:
        x = g.op("Relu", [x], f"{inner}.relu")
    x = to_grid(g, x, (f"{inner}.rows", inner), grid, len(weight), batch)
    x = convolution(g, x, result, weight, bias, 1, (1, 1, 1, 1), groups=len(weight), result=f"{inner}.conv")
    return from_grid(g, x, (f"{inner}.flat", result), grid, len(weight), batch)
