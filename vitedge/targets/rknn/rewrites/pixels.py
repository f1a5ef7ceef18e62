"""The graph's input as the toolkit wants it: float, NCHW, raw pixel scale.

`pixels` uint8 [N, H, W, C] -> Cast -> Transpose -> Conv    becomes    `pixels` float [N, C, H, W] -> Conv

The compiler then gives the artifact an input of uint8 NHWC of its own (`mean_values` 0, `std_values` 1), and the NPU
takes the pixels as they are: with a Cast in the graph, it converts an image on the CPU. Exact.
"""

from __future__ import annotations

from onnx import TensorProto, helper

from vitedge.onnx_graph.editor import GraphEditor
from vitedge.onnx_graph.matcher import attribute


def rewrite(g: GraphEditor) -> bool:
    """Applies it; False where the graph does not begin so."""
    source = g.model.graph.input[0]
    if source.type.tensor_type.elem_type != TensorProto.UINT8:
        return False
    cast = g.only_reader(source.name, "Cast")
    transpose = g.only_reader(cast.output[0], "Transpose") if cast is not None else None
    if transpose is None or attribute(transpose, "perm") != [0, 3, 1, 2]:
        return False
    g.replace(transpose.output[0], source.name)
    g.remove([transpose])
    n, height, width, channels = (d.dim_value or d.dim_param for d in source.type.tensor_type.shape.dim)
    source.CopyFrom(helper.make_tensor_value_info(source.name, TensorProto.FLOAT, [n, channels, height, width]))
    return True
