"""Dynamic quantisation's products in the form of static ones, so that the other rewrites know them.

    MatMulInteger -> Cast -> Mul(scale of x times scale of W)   becomes   MatMul(DequantizeLinear x, DequantizeLinear W)

where x still comes from DynamicQuantizeLinear, its scale and zero point found at run time.
"""

from __future__ import annotations

import numpy as np

from vitedge.onnx_graph.editor import GraphEditor


def rewrite(g: GraphEditor) -> int:
    """Rewrites every such product; returns how many there were."""
    count = 0
    for integer in [node for node in g.nodes if node.op_type == "MatMulInteger"]:
        cast = g.only_reader(integer.output[0], "Cast")
        scaled = g.only_reader(cast.output[0], "Mul") if cast is not None else None
        if scaled is None:
            continue
        x, w, x_zero, w_zero = integer.input
        both = g.maker(scaled.input[1], "Mul")
        if both is not None:
            x_scale, w_scale = both.input
        else:  # pixels: their scale is 1
            x_scale, w_scale = g.constant(f"{x}.scale", np.array(1, np.float32)), scaled.input[1]
        if f"{x}.dq" not in g.makers:
            g.op("DequantizeLinear", [x, x_scale, x_zero], f"{x}.dq")
        g.op("DequantizeLinear", [w, w_scale, w_zero], f"{w}.dq", axis=1)
        g.op("MatMul", [f"{x}.dq", f"{w}.dq"], scaled.output[0])
        g.remove([scaled])
        count += 1
    return count
