"""The work of an exported ONNX graph, node by node: the same terms as `terms.model_terms` of its plan. Loads onnx."""

from __future__ import annotations

import math
from pathlib import Path

import onnx

from vitedge.cost.terms import Term
from vitedge.onnx_graph.matcher import value_shapes

_ACTIVATIONS = {"Erf", "Tanh", "Sigmoid", "HardSwish"}
# Of a stem: passes over a map.
_PASSES = {"Relu", "MaxPool", "AveragePool"}
Shape = tuple[int, ...]


def graph_terms(graph: Path | onnx.ModelProto) -> list[Term]:
    """All work of one image in a float graph that `export_vit` wrote with a batch of 1.

    Reshapes and transposes count nothing: they are part of what stands around them.
    """
    model = graph if isinstance(graph, onnx.ModelProto) else onnx.load(graph)
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes = constants | value_shapes(model)
    return [term for node in model.graph.node for term in _node_terms(node, shapes, constants)]


def _node_terms(node: onnx.NodeProto, shapes: dict[str, Shape], constants: dict[str, Shape]) -> list[Term]:
    part, op = _part(node.name), node.op_type
    out = math.prod(shapes[node.output[0]]) if node.output[0] in shapes else 0
    if op == "Conv":
        kernel = constants[node.input[1]]
        return [Term(part, "patches", out * math.prod(kernel[1:])), Term(part, "operator", 1)]
    if op == "MatMul":
        return _product_terms(node, part, out, shapes, constants)
    if op == "Softmax":
        return [Term(part, "softmax", out), Term(part, "operator", 1)]
    if op == "LayerNormalization":
        found = [Term(part, "norm", out)]
        return [*found, Term(part, "merge", 4 * out)] if node.name.endswith(".merge.directions") else found
    if op == "InstanceNormalization":
        return [Term(part, "norm", out)]
    if op in _ACTIVATIONS and not node.name.startswith("pool.weighted"):
        return [Term(part, "activation", out)]
    if op == "ReduceMax" and ".merge." in node.name:
        return [Term(part, "merge", math.prod(shapes[node.input[0]])), Term(part, "operator", 8)]
    joins = op == "Concat" and node.name == "embed"
    positions = op == "Add" and any(len(constants.get(name, ())) == 3 for name in node.input)
    sums = op == "Add" and (".residual" in node.name or (part == "patches" and not constants.keys() & {*node.input}))
    return [Term(part, "elementwise", out)] if joins or positions or sums or op in _PASSES else []


def _product_terms(
    node: onnx.NodeProto, part: str, out: int, shapes: dict[str, Shape], constants: dict[str, Shape]
) -> list[Term]:
    first, second = node.input
    inner = shapes[first][-1]
    if second in constants and len(constants[second]) == 2:
        return [
            Term(part, "linear", out * inner),
            Term(part, "weights", math.prod(constants[second])),
            Term(part, "operator", 1),
        ]
    if first in constants:  # a constant merge
        return [Term(part, "linear", out * inner), Term(part, "operator", 1)]
    if ".merge." in node.name:
        # Sizes are carried along by a product of one column, which costs next to nothing.
        return [] if shapes[second][-1] == 1 else [Term(part, "linear", out * inner)]
    return [Term(part, "attention", out * inner)]


def _part(name: str) -> str:
    """ "block3.attention", "block3.mlp", "block3.merge", "patches" or "head"."""
    words = name.split(".")
    if words[0].startswith("block"):
        half = words[1] if len(words) > 1 else ""
        if "merge" in words or "merged" in words:
            half = "merge"
        return f"{words[0]}.{'attention' if half in ('norm1', 'attention', 'residual1') else half or 'mlp'}"
    return "head" if words[0] in ("norm", "head", "cls", "pool") else "patches"
