"""Q/DQ around a product -> one integer product with a float result.

    DequantizeLinear(x) -.
                          MatMul -> Add(bias)     becomes     MatMulIntegerToFloat(x, W, scales, zeros, bias)
    DequantizeLinear(W) -'

ONNX Runtime (1.31) turns MatMul and Add into Gemm before it looks for Q/DQ, and then finds no integer kernel whose
result is float: the weights are dequantised and multiplied in float at every run. Written as its own operator
(domain com.microsoft, since 1.2) the product runs on the integer kernels. Same integers, same result but for the
order of the additions.
"""

from __future__ import annotations

from vitedge.onnx_graph.editor import MICROSOFT, GraphEditor


def rewrite(g: GraphEditor) -> int:
    """Rewrites every product of two dequantised values; returns how many there were."""
    count = 0
    for matmul in [node for node in g.nodes if node.op_type == "MatMul"]:
        add = g.only_reader(matmul.output[0], "Add")
        linear = g.find_linear(add.output[0]) if add is not None else None
        linear = linear or g.find_linear(matmul.output[0])
        x = g.maker(matmul.input[0], "DequantizeLinear")
        w = g.maker(matmul.input[1], "DequantizeLinear")
        if linear is None or x is None or w is None:
            continue
        inputs = [x.input[0], w.input[0], x.input[1], w.input[1], x.input[2], w.input[2]]
        if len(linear.nodes) == 2:
            inputs.append(linear.nodes[1].input[1])
        g.op("MatMulIntegerToFloat", inputs, linear.result, MICROSOFT)
        g.remove(linear.nodes)
        count += 1
    return count
