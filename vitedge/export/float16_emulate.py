"""A typed FP16 graph as a float32 one that rounds where FP16 rounds: what a device computes, on any CPU.

ONNX Runtime's CPU has no FP16 kernels for most operators. It runs them in FP32 and drops the rounding between
them, so that a graph which overflows on a device gives fine numbers there. Here each FP16 value is rounded by
an explicit pair of Casts, which ONNX Runtime keeps: products are summed in FP32, and each result is rounded
once, as on tensor cores with FP32 accumulation.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from vitedge.onnx_graph.editor import GraphEditor, checked, set_attribute
from vitedge.onnx_graph.matcher import value_types

# These move or read numbers and round nothing.
_MOVES = {
    "Transpose",
    "Reshape",
    "Slice",
    "Concat",
    "Expand",
    "Identity",
    "Split",
    "Gather",
    "Flatten",
    "Unsqueeze",
    "Squeeze",
}


def emulate_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float32 graph with the numbers of the typed FP16 graph `model` (shapes inferred, as `to_float16`
    gives).
    """
    g, types = GraphEditor(model), value_types(model)
    for name, tensor in g.tensors.items():
        if tensor.data_type == TensorProto.FLOAT16:
            g.constant(name, numpy_helper.to_array(tensor).astype(np.float32))
    for node in g.take():
        g.keep(node)
        half = [name for name in node.output if types.get(name) == TensorProto.FLOAT16]
        if node.op_type == "Cast" and half:
            set_attribute(node, "to", TensorProto.FLOAT)
        for name in half if node.op_type not in _MOVES else ():
            rounded = g.op("Cast", [g.divert(name)], g.unique(f"{name}/rounded"), to=TensorProto.FLOAT16)
            g.op("Cast", [rounded], name, to=TensorProto.FLOAT)
    return checked(g.finish())
