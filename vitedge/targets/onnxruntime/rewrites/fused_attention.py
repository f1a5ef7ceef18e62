"""q, k, v, softmax and context as one operator of ONNX Runtime. Same arithmetic, fewer passes over memory.

    packed  Attention (float) or QAttention (int8 weights, uint8 input): the three products go straight into the
            layout by heads that the attention reads, so that nothing is transposed.
    heads   MultiHeadAttention behind three products.

Operators of the domain com.microsoft; documented in onnxruntime/docs/ContribOperators.md. Only where nothing between
the products and the context is quantised, and q, k and v are all float or all int8.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from vitedge.onnx_graph.editor import MICROSOFT, GraphEditor
from vitedge.onnx_graph.matcher import Linear, float_attention, scores_bias


def rewrite(g: GraphEditor, form: Literal["packed", "heads"]) -> int:
    """Rewrites every attention it knows; returns how many there were."""
    names = [node.name.removesuffix(".scores") for node in g.nodes if node.name.endswith(".attention.scores")]
    return sum(_fuse(g, name, form) for name in names)


def _fuse(g: GraphEditor, name: str, form: str) -> bool:
    chain = float_attention(g, name)
    context = g.maker(f"{name}.context", "Reshape")
    parts = [g.find_linear(f"{name}.{part}") for part in "qkv"]
    linears = [part for part in parts if part is not None and part.bias is not None]
    if not chain or context is None or len(linears) < 3 or len({part.x for part in linears}) != 1:
        return False
    found = [g.array(g.makers[f"{name}.{part}.split"].input[1]) for part in "qkv"]
    shapes = [shape for shape in found if shape is not None]
    heads, dims = int(shapes[0][2]), [int(shape[3]) for shape in shapes]
    bias = _square(g, name)
    if form == "packed" and (bias is None or linears[0].scale is None):
        return _packed(g, name, linears, heads, dims, bias)
    # QAttention takes no bias.
    values = [*(part.result for part in linears), *(["", "", bias] if bias else [])]
    g.op("MultiHeadAttention", values, f"{name}.context", MICROSOFT, num_heads=heads, scale=1.0)
    g.remove([context])
    return True


def _square(g: GraphEditor, name: str) -> str | None:
    """The bias of the scores [N, 1, tokens, tokens] where tokens were merged: the kernels want a row for each query."""
    bias, shape = scores_bias(g, name), g.array(g.makers[f"{name}.q.split"].input[1])
    if bias is None or shape is None:
        return None
    square = f"{bias}.square"
    if square not in g.makers:
        rows = g.constant(f"{square}.shape", np.array([1, 1, shape[1], 1], np.int64))
        g.op("Expand", [bias, rows], square)
    return square


def _packed(g: GraphEditor, name: str, parts: list[Linear], heads: int, dims: list[int], bias: str | None) -> bool:
    context = g.makers[f"{name}.context"]
    weight = np.concatenate([part.weight for part in parts], 1)
    biases = np.concatenate([part.bias for part in parts if part.bias is not None])
    scales = [part.scale for part in parts if part.scale is not None]
    stored = g.constant(f"{name}.qkv.weight", weight)
    if not scales:
        sizes = {} if len(set(dims)) == 1 else {"qkv_hidden_sizes": [heads * dim for dim in dims]}
        inputs = [parts[0].x, stored, g.constant(f"{name}.qkv.bias", biases), *(["", "", bias] if bias else [])]
        g.op("Attention", inputs, f"{name}.context", MICROSOFT, num_heads=heads, scale=1.0, **sizes)
        g.remove([context])
        return True
    x = g.maker(parts[0].x, "DequantizeLinear")
    if len(scales) < 3 or len(set(dims)) > 1 or x is None:
        return False
    # QAttention divides by sqrt(dim) itself, and has no attribute against it: q is made that much larger.
    scale, up = np.concatenate(scales).astype(np.float32), np.float32(np.sqrt(dims[0]))
    scale[: heads * dims[0]] *= up
    biases = biases.copy()
    biases[: heads * dims[0]] *= up
    inputs = [x.input[0], stored, g.constant(f"{name}.qkv.bias", biases), x.input[1]]
    inputs += [g.constant(f"{name}.qkv.scale", scale), "", x.input[2]]
    g.op("QAttention", inputs, f"{name}.context", MICROSOFT, num_heads=heads)
    g.remove([context])
    return True
