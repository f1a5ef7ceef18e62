"""An ONNX graph of ours under rewriting: values, their makers and readers, and the Linears written in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


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
    """A copy of a model. Nodes are added and removed in any order; `finish` sorts them and drops what is dead."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.nodes = list(self.model.graph.node)
        self.tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
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

    def constant(self, name: str, value: np.ndarray) -> str:
        """Adds a constant; returns its name."""
        from onnx import numpy_helper

        self.tensors[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def add(self, op: str, inputs: list[str], outputs: str | list[str], domain: str = "", **attributes: Any) -> str:
        """Adds a node named as its (first) output, which it returns."""
        from onnx import helper

        names = [outputs] if isinstance(outputs, str) else outputs
        node = helper.make_node(op, inputs, names, name=names[0], domain=domain, **attributes)
        self.nodes.append(node)
        for name in names:
            self.makers[name] = node
        for name in inputs:
            self.readers.setdefault(name, []).append(node)
        return names[0]

    def remove(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Takes nodes out, and what made only their inputs: so what replaces them is added before."""
        gone: set[int] = set()
        pending = list(nodes)
        while pending:
            node = pending.pop()
            gone.add(id(node))
            for name in node.input:
                maker = self.makers.get(name)
                if maker is not None and all(
                    id(reader) in gone for value in maker.output for reader in self.readers.get(value, [])
                ):
                    pending.append(maker)
        self.nodes = [node for node in self.nodes if id(node) not in gone]
        for name, readers in self.readers.items():
            self.readers[name] = [node for node in readers if id(node) not in gone]

    def linear(self, name: str) -> Linear | None:
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

    def write_linear(self, x: str, name: str, weight: np.ndarray, scale: np.ndarray | None, bias: np.ndarray) -> str:
        """Adds a Linear as the exporter and the Q/DQ pass write it; its result is the value `name`."""
        if scale is None:
            stored = self.constant(f"{name}.weight", weight)
        else:
            inputs = [
                self.constant(f"{name}.weight.int8", weight),
                self.constant(f"{name}.weight.scale", scale.astype(np.float32)),
                self.constant(f"{name}.weight.zero", np.zeros(len(scale), np.int8)),
            ]
            stored = self.add("DequantizeLinear", inputs, f"{name}.weight", axis=1)
        self.add("MatMul", [x, stored], f"{name}.matmul")
        return self.add("Add", [f"{name}.matmul", self.constant(f"{name}.bias", bias)], name)

    def finish(self) -> onnx.ModelProto:
        """The model: nodes in an order in which it can be run, unused nodes and constants dropped."""
        from onnx import helper

        graph = self.model.graph
        nodes = self._sorted([value.name for value in graph.output])
        used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
        tensors = [tensor for name, tensor in self.tensors.items() if name in used]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(nodes)
        graph.initializer.extend(tensors)
        if any(node.domain == MICROSOFT for node in nodes) and all(
            entry.domain != MICROSOFT for entry in self.model.opset_import
        ):
            self.model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
        return self.model

    def _sorted(self, outputs: list[str]) -> list[onnx.NodeProto]:
        """Depth first from the outputs, without recursion: a ViT has thousands of nodes in a row."""
        makers = {name: node for node in self.nodes for name in node.output}
        order: list[onnx.NodeProto] = []
        done: set[int] = set()
        stack = [(makers[name], False) for name in reversed(outputs)]
        while stack:
            node, ready = stack.pop()
            if id(node) in done:
                continue
            if ready:
                done.add(id(node))
                order.append(node)
                continue
            stack.append((node, True))
            stack.extend((makers[n], False) for n in reversed(node.input) if n in makers and id(makers[n]) not in done)
        return order


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
