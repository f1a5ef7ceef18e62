"""What stands in an ONNX graph: values, their makers and readers, constants, and the patterns that vitedge writes.

Imports onnx only when called, as a board may not have it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

_TAP = re.compile(r"embed|block\d+\.residual[12]")


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, or `default`."""
    from onnx import helper

    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), default)


def value_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of inputs, outputs and all values where they were inferred; a free dimension is -1."""
    graph = model.graph
    return {
        value.name: tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.output, *graph.input)
    }


def input_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    """[N, H, W, C] of the images that the graph takes; a free dimension is -1."""
    return value_shapes(model)[model.graph.input[0].name]


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    """ONNX's element type of outputs and of all values where they were inferred."""
    return {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}


def taps_of(model: onnx.ModelProto) -> list[str]:
    """The embedding and each block's two residual sums, in the order of the graph: by them one finds the block that a
    board computes wrong."""
    return [name for node in model.graph.node for name in node.output if _TAP.fullmatch(name)]


@dataclass(frozen=True, eq=False)
class Linear:
    """y = x W + b as the exported graph writes it: MatMul, Add, and DequantizeLinear where W is stored in int8.

    Attributes:
        x, result: the values that it reads and makes.
        weight: [in, out], int8 where it is stored so, else float32.
        scale: [out] of an int8 weight (its zero points are 0), else None.
        bias: [out], or None where the graph adds none.
        nodes: MatMul and Add, as they stand.
    """

    x: str
    result: str
    weight: np.ndarray
    scale: np.ndarray | None
    bias: np.ndarray | None
    nodes: tuple[onnx.NodeProto, ...]

    @property
    def floats(self) -> np.ndarray:
        """The weight [in, out] in float32."""
        return self.weight if self.scale is None else self.weight.astype(np.float32) * self.scale


class Graph:
    """A model's nodes, and by name: its constants, and the nodes that make and read each value. Copies nothing."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = []
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            self._index(node)

    def _index(self, node: onnx.NodeProto) -> None:
        self.nodes.append(node)
        for name in node.output:
            self.makers[name] = node
        for name in node.input:
            self.readers.setdefault(name, []).append(node)

    def maker(self, value: str, op: str) -> onnx.NodeProto | None:
        """The node that makes this value, where it is of that kind."""
        node = self.makers.get(value)
        return node if node is not None and node.op_type == op else None

    def only_reader(self, value: str, op: str) -> onnx.NodeProto | None:
        """The node that reads this value, where it is the only one and of that kind."""
        readers = self.readers.get(value, [])
        return readers[0] if len(readers) == 1 and readers[0].op_type == op else None

    def array(self, name: str) -> np.ndarray | None:
        """The constant of that name, or None."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.tensors[name]) if name in self.tensors else None

    def find_linear(self, name: str) -> Linear | None:
        """The Linear that makes the value `name`, or None where that is something else."""
        add = self.maker(name, "Add")
        bias = self.array(add.input[1]) if add is not None else None
        matmul = self.maker(add.input[0] if add is not None else name, "MatMul")
        if matmul is None or (add is not None and bias is None):
            return None
        weight, scale = self.array(matmul.input[1]), None
        dequantize = self.maker(matmul.input[1], "DequantizeLinear")
        if weight is None and dequantize is not None:
            weight, scale = self.array(dequantize.input[0]), self.array(dequantize.input[1])
        if weight is None:
            return None
        return Linear(matmul.input[0], name, weight, scale, bias, (matmul,) if add is None else (matmul, add))


def scores_bias(g: Graph, name: str) -> str | None:
    """What is added to the scores of the attention `name` [N, heads, queries, tokens]: [N, 1, 1, tokens], the logarithm
    of the tokens' sizes, where tokens were merged; else None."""
    node = g.maker(f"{name}.scores.weighted", "Add")
    return node.input[1] if node is not None else None


def float_attention(g: Graph, name: str) -> bool:
    """Whether the q, k and v of the attention `name` reach its context with no Q/DQ between: nothing but reshaping,
    two products, the sizes of merged tokens and softmax."""
    bias = scores_bias(g, name)
    scores = f"{name}.scores" if bias is None else f"{name}.scores.weighted"
    expected = {
        **({} if bias is None else {scores: ("Add", [f"{name}.scores", bias])}),
        f"{name}.scores": ("MatMul", [f"{name}.q.heads", f"{name}.k.transposed"]),
        f"{name}.probs": ("Softmax", [scores]),
        f"{name}.context.heads": ("MatMul", [f"{name}.probs", f"{name}.v.heads"]),
        f"{name}.context.joined": ("Transpose", [f"{name}.context.heads"]),
        **{f"{name}.{part}.heads": ("Transpose", [f"{name}.{part}.split"]) for part in "qv"},
        f"{name}.k.transposed": ("Transpose", [f"{name}.k.split"]),
    }
    for value, (op, inputs) in expected.items():
        node = g.maker(value, op)
        if node is None or list(node.input) != inputs:
            return False
    reshaped = {f"{name}.{part}.split": f"{name}.{part}" for part in "qkv"}
    reshaped[f"{name}.context"] = f"{name}.context.joined"
    for value, source in reshaped.items():
        node = g.maker(value, "Reshape")
        if node is None or node.input[0] != source:
            return False
    return True
