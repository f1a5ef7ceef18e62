"""The residual stream scaled by a power of two, so that a large ViT's fits into FP16. Exact.

Every value of the stream goes through a LayerNorm before anything else reads it, and LayerNorm takes a scale
out again: LN(s x; eps s^2) = LN(x; eps). So all weights that write to the stream are scaled by s = 2^-k,
which changes no digit of them, and the epsilons by s^2. Large ViTs and those with massive activations (arXiv
2402.17762) reach beyond FP16's 65504 there; without this, their whole stream has to stay in FP32.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from vitedge.onnx_graph.editor import set_attribute
from vitedge.onnx_graph.matcher import Graph, attribute

# These hand a scale on from input to output: (operator, which inputs carry numbers).
_CARRIES: dict[str, slice] = {
    "Add": slice(0, 2),
    "Concat": slice(0, None),
    **dict.fromkeys(("Slice", "Reshape", "Transpose", "Expand", "Identity"), slice(0, 1)),
}
_WRITES = {"MatMul": [1], "Gemm": [1, 2], "Conv": [1, 2]}


@dataclass(frozen=True)
class ResidualScale:
    """What `rescale_residual` did.

    Attributes:
        exponent: k of the scale 2^-k; 0 where the stream fits, or could not be scaled.
        before, after: largest magnitude in the stream on calibration images.
        reason: why it was not scaled although it does not fit; empty otherwise.
    """

    exponent: int
    before: float
    after: float
    reason: str = ""


def rescale_residual(
    model: onnx.ModelProto, ranges: dict[str, float], limit: float, headroom: float = 4.0
) -> tuple[onnx.ModelProto, dict[str, float], ResidualScale]:
    """The graph with its residual stream below `limit / headroom`, its new ranges, and what was done.

    ranges: value -> largest magnitude on calibration images. A stream below `limit` is left as it is. Where
    something else than LayerNorms reads the stream, the graph comes back unchanged, with the reason.
    """
    stream = _Stream(model)
    largest = max((ranges[v] for v in stream.values if v in ranges), default=0.0)
    if largest <= limit or not math.isfinite(largest):
        return model, ranges, ResidualScale(0, largest, largest)
    if stream.problem:
        return model, ranges, ResidualScale(0, largest, largest, stream.problem)
    exponent = math.ceil(math.log2(largest * headroom / limit))
    factor = 2.0**-exponent
    scaled = stream.scaled(factor)
    new = {v: r * factor if v in stream.values else r for v, r in ranges.items()}
    return scaled, new, ResidualScale(exponent, largest, largest * factor)


def scale_stream(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The graph with its residual stream times `factor`, which its logits don't show. Raises ValueError where
    something else than LayerNorms reads the stream."""
    stream = _Stream(model)
    if stream.problem:
        raise ValueError(stream.problem)
    return stream.scaled(factor)


class _Stream:
    """The values that carry the stream's scale, from the LayerNorms back to the weights that write them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        g = Graph(model)
        self.model, self.constants = model, set(g.tensors)
        self.values: set[str] = set()
        self.weights: set[str] = set()
        self.problem = ""
        open_ = [n.input[0] for n in model.graph.node if n.op_type == "LayerNormalization"]
        while open_:
            value = open_.pop()
            if value in self.constants:
                self.weights.add(value)
            elif value not in self.values:
                self.values.add(value)
                open_ += self._sources(g.makers.get(value), value)
        # Everything else that reads the stream, or one of its weights, would meet another scale.
        for node in model.graph.node:
            inside = bool(self.values.intersection(node.output))
            if node.op_type == "Shape" or (inside and node.op_type in _CARRIES):
                continue
            read = set(node.input)
            if node.op_type == "LayerNormalization":
                read = set(node.input[1:])
            elif inside:
                read = {node.input[0]}
            if met := read & (self.values | self.weights):
                self.problem = self.problem or f"{node.op_type} {node.name} reads {min(met)} without a LayerNorm"

    def _sources(self, node: onnx.NodeProto | None, value: str) -> list[str]:
        if node is not None and node.op_type in _CARRIES:
            return list(node.input[_CARRIES[node.op_type]])
        if node is not None and node.op_type in _WRITES:
            written = [node.input[i] for i in _WRITES[node.op_type] if i < len(node.input)]
            if all(name in self.constants for name in written):
                self.weights.update(written)
                return []
        self.problem = self.problem or f"{value} is written by {node.op_type if node else 'an input of the graph'}"
        return []

    def scaled(self, factor: float) -> onnx.ModelProto:
        """The graph with the stream times `factor`."""
        out = copy.deepcopy(self.model)
        for tensor in out.graph.initializer:
            if tensor.name in self.weights:
                array = numpy_helper.to_array(tensor) * np.float32(factor)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        for node in out.graph.node:
            if node.op_type == "LayerNormalization":
                set_attribute(node, "epsilon", attribute(node, "epsilon", 1e-5) * factor**2)
        return out
