"""Merging of tokens as ONNX operators that runtimes have fast: one TopK a stage, gathers along one axis, and a small
one-hot product in place of a scatter. Static shapes but for the batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from vitedge.onnx_graph.builder import GraphBuilder
from vitedge.tokens.matching import EPS
from vitedge.vit.block import Merge


@dataclass(frozen=True)
class Sizes:
    """How many tokens each one stands for: the value [N, tokens, 1] in the graph, and its logarithm [N, 1, 1, tokens]
    that is added to the scores. Constants have a first axis of 1."""

    value: str
    log: str


def merge_tokens(
    g: GraphBuilder,
    name: str,
    x: str,
    sizes: Sizes | None,
    merge: Merge,
    shape: tuple[int, int],
    prefix: int,
    one: bool,
) -> tuple[str, Sizes]:
    """The value `name.merged` [N, left, C] and its sizes, as `vitedge.tokens.matching` computes them.

    shape: tokens and width of x. one: whether the batch is 1.
    """
    if not merge.matched:
        return _constant(g, name, x, g.array(sizes.value) if sizes else None, merge, shape[0])
    return _matched(g, name, x, sizes, merge, shape, prefix, one)


def _constant(
    g: GraphBuilder, name: str, x: str, sizes: np.ndarray | None, merge: Merge, tokens: int
) -> tuple[str, Sizes]:
    """All images alike: one product with a constant matrix [left, tokens]."""
    weights = np.ones(tokens) if sizes is None else sizes.reshape(-1).astype(np.float64)
    matrix = np.zeros((merge.left, tokens))
    matrix[np.asarray(merge.groups), np.arange(tokens)] = weights
    total = matrix.sum(1, keepdims=True)
    merged = g.op(
        "MatMul", [g.constant(f"{name}.merge.matrix", (matrix / total).astype(np.float32)), x], f"{name}.merged"
    )
    value = g.constant(f"{name}.merge.sizes", total[None].astype(np.float32))
    log = g.constant(f"{name}.merge.log_sizes", np.log(total.reshape(1, 1, 1, -1)).astype(np.float32))
    return merged, Sizes(value, log)


def _matched(
    g: GraphBuilder,
    name: str,
    x: str,
    sizes: Sizes | None,
    merge: Merge,
    shape: tuple[int, int],
    prefix: int,
    one: bool,
) -> tuple[str, Sizes]:
    tokens, width = shape
    m, gone = f"{name}.merge", tokens - merge.left
    second = (tokens - prefix) // 2
    first = tokens - prefix - second

    def deal(value: str, label: str) -> tuple[str, str]:
        """Every other token after the prefix, from the first and from the second on."""
        last, axis, step = g.shape(tokens), g.shape(1), g.shape(2)
        return tuple(  # type: ignore[return-value]
            g.op("Slice", [value, g.shape(prefix + k), last, axis, step], f"{m}.{label}{k + 1}") for k in range(2)
        )

    def rows(value: str, index: str, label: str) -> str:
        """The rows `index` [N, r] of `value` [N, n, ...]: along one axis where there is one image."""
        if one:
            return g.op(
                "Gather", [value, g.op("Reshape", [index, g.shape(-1)], f"{m}.{label}.index")], f"{m}.{label}", axis=1
            )
        index = g.op("Unsqueeze", [index, g.shape(-1)], f"{m}.{label}.index")
        return g.op("GatherND", [value, index], f"{m}.{label}", batch_dims=1)

    scale = g.constant("merge.scale", np.full(width, width**-0.5, np.float32))
    zero = g.constant("merge.zero", np.zeros(width, np.float32))
    directions = g.op("LayerNormalization", [x, scale, zero], f"{m}.directions", axis=-1, epsilon=EPS)
    ours, theirs = deal(directions, "directions")
    theirs = g.op("Transpose", [theirs], f"{m}.transposed", perm=[0, 2, 1])
    scores = g.op("MatMul", [ours, theirs], f"{m}.cosine")
    a, b = deal(x, "tokens")
    if sizes is not None:
        n, k = deal(sizes.value, "sizes")
        scores = _ward(g, m, scores, n, k)
    best = g.op("ReduceMax", [scores, g.shape(2)], f"{m}.best", keepdims=0)
    nearest = g.op("ArgMax", [scores], f"{m}.nearest", axis=2, keepdims=0)
    order = f"{m}.order"
    g.op("TopK", [best, g.shape(first)], [f"{m}.sorted", order], axis=1, largest=1, sorted=1)
    going = g.op("Slice", [order, g.shape(0), g.shape(gone), g.shape(1)], f"{m}.going")
    to = rows(nearest, going, "to")  # [N, gone]
    to = g.op("Unsqueeze", [to, g.shape(1)], f"{m}.to.row")
    numbers = g.constant(f"merge.numbers_{second}", np.arange(second)[None, :, None])
    onehot = g.op("Cast", [g.op("Equal", [to, numbers], f"{m}.same")], f"{m}.onehot", to=TensorProto.FLOAT)
    cut = g.shape(gone, first - gone)
    moved, rest = f"{m}.moved", f"{m}.rest"
    g.op("Split", [rows(a, order, "ordered"), cut], [moved, rest], axis=1)
    if sizes is None:
        added = g.op("MatMul", [onehot, moved], f"{m}.added")
        total = g.op("Add", [b, added], f"{m}.total")
        count = g.op("ReduceSum", [onehot, g.shape(2)], f"{m}.count", keepdims=1)
        count = g.op("Add", [count, g.constant("one", np.float32(1))], f"{m}.size")
    else:
        moved_n, rest_n = f"{m}.moved_n", f"{m}.rest_n"
        g.op("Split", [rows(n, order, "ordered_sizes"), cut], [moved_n, rest_n], axis=1)
        added = g.op("MatMul", [onehot, g.op("Mul", [moved, moved_n], f"{m}.weighted")], f"{m}.added")
        total = g.op("Add", [g.op("Mul", [b, k], f"{m}.own"), added], f"{m}.total")
        count = g.op("Add", [k, g.op("MatMul", [onehot, moved_n], f"{m}.count")], f"{m}.size")
    mean = g.op("Div", [total, count], f"{m}.mean")
    head = g.op("Slice", [x, g.shape(0), g.shape(prefix), g.shape(1)], f"{m}.prefix")
    merged = g.op("Concat", [head, rest, mean], f"{name}.merged", axis=1)
    if sizes is None:
        # Ones for prefix and rest, of the batch's size: sums of nothing.
        ones = g.op(
            "Pad",
            [count, g.shape(0, prefix + first - gone, 0, 0, 0, 0), g.constant("one", np.float32(1))],
            f"{m}.sizes",
        )
    else:
        front = g.op("Slice", [sizes.value, g.shape(0), g.shape(prefix), g.shape(1)], f"{m}.prefix_n")
        ones = g.op("Concat", [front, rest_n, count], f"{m}.sizes", axis=1)
    log = g.op("Log", [ones], f"{m}.log")
    return merged, Sizes(ones, g.op("Reshape", [log, g.shape(0, 1, 1, merge.left)], f"{m}.log_sizes"))


def _ward(g: GraphBuilder, m: str, cosine: str, ours: str, theirs: str) -> str:
    """See `vitedge.tokens.matching.ward`; sizes [N, n, 1]."""
    one = g.constant("one", np.float32(1))
    theirs = g.op("Transpose", [theirs], f"{m}.their_sizes", perm=[0, 2, 1])
    inverse = g.op(
        "Add", [g.op("Reciprocal", [ours], f"{m}.ours"), g.op("Reciprocal", [theirs], f"{m}.theirs")], f"{m}.inverse"
    )
    return g.op("Div", [g.op("Sub", [cosine, one], f"{m}.distance"), inverse], f"{m}.scores")
