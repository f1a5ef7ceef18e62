"""The graph's input as the toolkit wants it: float, NCHW, raw pixel scale.

`pixels` uint8 [N, H, W, C] -> Cast -> Transpose -> Conv    becomes    `pixels` float [N, C, H, W] -> Conv

The compiler then gives the artifact an input of uint8 NHWC of its own (`mean_values` 0, `std_values` 1), and the NPU
takes the pixels as they are: with a Cast in the graph, it converts an image on the CPU. Exact.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

from vitedge.targets.rknn.rewrites import edit


def rewrite(model: onnx.ModelProto) -> bool:
    """Applies it in place; False where the graph does not begin so."""
    source = model.graph.input[0]
    if source.type.tensor_type.elem_type != TensorProto.UINT8:
        return False
    first = edit.consumers(model, source.name)
    if len(first) != 1 or first[0].op_type != "Cast":
        return False
    second = edit.consumers(model, first[0].output[0])
    if len(second) != 1 or second[0].op_type != "Transpose":
        return False
    if edit.attribute(second[0], "perm") != [0, 3, 1, 2]:
        return False
    shape = [edit_dim(d) for d in source.type.tensor_type.shape.dim]
    for node in edit.consumers(model, second[0].output[0]):
        node.input[:] = [source.name if name == second[0].output[0] else name for name in node.input]
    edit.replace_nodes(model, [first[0], second[0]], [])
    n, height, width, channels = shape
    source.CopyFrom(onnx.helper.make_tensor_value_info(source.name, TensorProto.FLOAT, [n, channels, height, width]))
    return True


def edit_dim(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    """A fixed dimension's size, or a free one's name."""
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param
