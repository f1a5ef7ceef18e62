"""Weights in int8 whose product is in float -> float weights, made when the session starts.

    DequantizeLinear(W) -> MatMul     becomes     Mul(Cast(W), scale) -> MatMul

ONNX Runtime (1.31) makes MatMulNBits of the first form, with `session.qdq_matmulnbits_accuracy_level` at its default
of 4: that rounds the activations to int8 too, 32 at a time, and they were left in float since they bear it least. It
folds the second form into a constant, so the file stays small and the product is in float whatever the session.
"""

from __future__ import annotations

import numpy as np

from vitedge.onnx_graph.editor import GraphEditor
from vitedge.onnx_graph.matcher import attribute


def rewrite(g: GraphEditor) -> int:
    """Rewrites every such weight; returns how many there were."""
    from onnx import TensorProto

    count = 0
    for node in [node for node in g.nodes if node.op_type == "DequantizeLinear"]:
        values, scale = g.array(node.input[0]), g.array(node.input[1])
        if values is None or scale is None or values.ndim != 2:
            continue
        axis = attribute(node, "axis", 1)
        along = [-1 if d == axis else 1 for d in range(2)] if scale.size > 1 else [1, 1]
        name = node.output[0]
        floats = g.op("Cast", [node.input[0]], f"{name}.float", to=TensorProto.FLOAT)
        g.op("Mul", [floats, g.constant(f"{name}.float.scale", np.reshape(scale, along))], name)
        g.remove([node])
        count += 1
    return count
