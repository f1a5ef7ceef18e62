"""The last block's attention for [CLS] alone, without keys and values of the other tokens. Exact.

With one query a head, softmax(q K^T) V needs neither K [tokens, dim] nor V: for x [tokens, width],

    q (x Wk + bk)^T  =  (q Wk^T) x^T + q bk^T      the last term is the same for all tokens: softmax drops it
    p (x Wv + bv)    =  (p x) Wv + bv              since p sums to 1

so two products of all tokens become four of one row a head: 1.3 % of a ViT-B/16's multiplications. Only where
nothing in between is quantised.
"""

from __future__ import annotations

import numpy as np

from vitedge.onnx_graph.editor import GraphEditor
from vitedge.onnx_graph.matcher import Linear, float_attention, scores_bias


def rewrite(g: GraphEditor) -> int:
    """Rewrites every attention with a single query; returns how many there were."""
    names = [node.name.removesuffix(".scores") for node in g.nodes if node.name.endswith(".attention.scores")]
    return sum(_fold(g, name) for name in names)


def _fold(g: GraphEditor, name: str) -> bool:
    shape = _split_shape(g, f"{name}.q.heads")
    if shape is None or shape[1] != 1:
        return False
    k, v = _projection(g, f"{name}.k.transposed"), _projection(g, f"{name}.v.heads")
    value_shape = _split_shape(g, f"{name}.v.heads")
    context = g.maker(f"{name}.context", "Reshape")
    if k is None or v is None or context is None or value_shape is None or not float_attention(g, name):
        return False
    batch, heads, dim, value_dim = int(shape[0]), int(shape[2]), int(shape[3]), int(value_shape[3])
    tokens, bias = int(value_shape[1]), scores_bias(g, name)
    width, x = len(k.floats), k.x

    def reshape(value: str, to: tuple[int, ...], result: str) -> str:
        return g.op("Reshape", [value, g.constant(f"{result}.shape", np.array(to, np.int64))], result)

    keys = k.floats.reshape(width, heads, dim).transpose(1, 2, 0)
    values = v.floats.reshape(width, heads, value_dim).transpose(1, 0, 2)
    query = g.op("MatMul", [f"{name}.q.heads", g.constant(f"{name}.k.folded", keys)], f"{name}.q.folded")
    query = reshape(query, (batch, heads, width), f"{name}.q.rows")
    query = g.op("Transpose", [query], f"{name}.q.columns", perm=[0, 2, 1])
    scores = g.op("MatMul", [x, query], f"{name}.scores.columns")
    scores = g.op("Transpose", [scores], f"{name}.scores.rows", perm=[0, 2, 1])
    if bias is not None:
        scores = g.op("Add", [scores, reshape(bias, (-1, 1, tokens), f"{name}.bias.rows")], f"{name}.scores.biased")
    probs = g.op("Softmax", [scores], f"{name}.probs.rows", axis=-1)
    mean = g.op("MatMul", [probs, x], f"{name}.mean")
    mean = reshape(mean, (batch, heads, 1, width), f"{name}.mean.heads")
    result = g.op("MatMul", [mean, g.constant(f"{name}.v.folded", values)], f"{name}.context.product")
    if v.bias is not None:
        bias = g.constant(f"{name}.v.folded.bias", v.bias.reshape(heads, 1, value_dim))
        result = g.op("Add", [result, bias], f"{name}.context.biased")
    # [N, heads, 1, dim] has the elements of [N, 1, heads * dim] in their order already.
    g.op("Reshape", [result, context.input[1]], f"{name}.context")
    g.remove([context])
    return True


def _split_shape(g: GraphEditor, value: str) -> np.ndarray | None:
    """(batch, tokens, heads, dim) that the Reshape before this Transpose asks for."""
    transpose = g.maker(value, "Transpose")
    split = g.maker(transpose.input[0], "Reshape") if transpose is not None else None
    return g.array(split.input[1]) if split is not None else None


def _projection(g: GraphEditor, value: str) -> Linear | None:
    """The Linear behind Reshape and Transpose."""
    transpose = g.maker(value, "Transpose")
    split = g.maker(transpose.input[0], "Reshape") if transpose is not None else None
    return g.find_linear(split.input[0]) if split is not None else None
