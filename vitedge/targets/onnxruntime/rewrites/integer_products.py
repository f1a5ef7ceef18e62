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

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

DOMAIN = "com.microsoft"


def rewrite(model: onnx.ModelProto) -> int:
    """Rewrites the model in place; returns how many products it found."""
    from onnx import helper

    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constants = {tensor.name for tensor in graph.initializer}
    products: dict[str, onnx.NodeProto] = {}
    absorbed: set[str] = set()
    for node in graph.node:
        pair = [makers.get(name) for name in node.input] if node.op_type == "MatMul" else []
        x, w = pair if len(pair) == 2 else (None, None)
        if x is None or w is None or {x.op_type, w.op_type} != {"DequantizeLinear"} or w.input[0] not in constants:
            continue
        inputs = [x.input[0], w.input[0], x.input[1], w.input[1], x.input[2], w.input[2]]
        result, after = node.output[0], readers.get(node.output[0], [])
        if len(after) == 1 and after[0].op_type == "Add" and after[0].input[1] in constants:
            inputs.append(after[0].input[1])
            result = after[0].output[0]
            absorbed.add(after[0].name)
        products[node.name] = helper.make_node("MatMulIntegerToFloat", inputs, [result], name=result, domain=DOMAIN)
    if products:
        kept = [products.get(node.name, node) for node in graph.node if node.name not in absorbed]
        _replace(graph, _alive(kept, {value.name for value in graph.output}))
        if all(entry.domain != DOMAIN for entry in model.opset_import):
            model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return len(products)


def _alive(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes that something reads, in their order; one look from the end suffices in a sorted graph."""
    needed, alive = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            alive.append(node)
            needed.update(node.input)
    return alive[::-1]


def _replace(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    nodes = list(nodes)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
