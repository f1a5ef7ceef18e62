"""A typed FP16 graph as a float32 one that rounds where FP16 rounds: what a device computes, on any CPU.

ONNX Runtime's CPU has no FP16 kernels for most operators. It runs them in FP32 and drops the rounding between
them, so that a graph which overflows on a device gives fine numbers there. Here each FP16 value is rounded by
an explicit pair of Casts, which ONNX Runtime keeps: products are summed in FP32, and each result is rounded
once, as on tensor cores with FP32 accumulation.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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
    types = {v.name: v.type.tensor_type.elem_type for v in [*model.graph.value_info, *model.graph.output]}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        half = [i for i, o in enumerate(node.output) if types.get(o) == TensorProto.FLOAT16]
        if node.op_type == "Cast" and half:
            next(a for a in new.attribute if a.name == "to").i = TensorProto.FLOAT
        nodes.append(new)
        if node.op_type in _MOVES:
            continue
        for i in half:
            name = node.output[i]
            new.output[i] = f"{name}/exact"
            nodes.append(
                helper.make_node("Cast", [f"{name}/exact"], [f"{name}/rounded"], to=TensorProto.FLOAT16)
            )
            nodes.append(helper.make_node("Cast", [f"{name}/rounded"], [name], to=TensorProto.FLOAT))
    constants = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        constants.append(tensor)
    graph = helper.make_graph(
        nodes, model.graph.name, list(model.graph.input), list(model.graph.output), constants
    )
    out = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    return onnx.shape_inference.infer_shapes(out, check_type=True, strict_mode=True)
