"""Editing an ONNX graph: values rewired, nodes replaced, the result checked. Imports onnx only when
called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vitedge.errors import VitedgeError

if TYPE_CHECKING:
    import onnx


class GraphEditor:
    """A copy of a model whose nodes are rewritten in one pass, in their order.

    `emit` appends to the new list of nodes; `finish` returns the checked model with fresh shapes.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx
        from onnx import numpy_helper

        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self.initializers = {t.name: t for t in self.graph.initializer}
        self.source = list(self.graph.node)
        self.nodes: list[onnx.NodeProto] = []
        self._array = numpy_helper.to_array
        self._tensor = numpy_helper.from_array

    def array(self, name: str) -> np.ndarray | None:
        """The initialiser of that name, or None."""
        tensor = self.initializers.get(name)
        return None if tensor is None else self._array(tensor)

    def constant(self, name: str, value: np.ndarray) -> str:
        """Adds or replaces an initialiser; returns its name."""
        self.initializers[name] = self._tensor(
            np.array(value, order="C"), name
        )  # keeps a scalar a scalar: kernels insist
        return name

    def drop(self, name: str) -> None:
        """Removes an initialiser."""
        self.initializers.pop(name, None)

    def emit(self, op: str, inputs: list[str], output: str | list[str], **attributes: Any) -> str:
        """Appends a node named as its (first) output, which it returns."""
        from onnx import helper

        outputs = [output] if isinstance(output, str) else output
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], **attributes))
        return outputs[0]

    def keep(self, node: onnx.NodeProto) -> None:
        """Appends a node as it is."""
        self.nodes.append(node)

    def finish(self) -> onnx.ModelProto:
        """The model with its new nodes, unused initialisers dropped, shapes inferred afresh, and checked."""
        import onnx

        used = {name for node in self.nodes for name in node.input}
        used |= {value.name for value in self.graph.output}
        del self.graph.node[:], self.graph.initializer[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend(t for n, t in self.initializers.items() if n in used)
        model = onnx.shape_inference.infer_shapes(self.model, check_type=True)
        onnx.checker.check_model(model, full_check=False)
        return model


def misfit(what: str) -> VitedgeError:
    """The error for a scheme that belongs to another graph."""
    return VitedgeError(
        "The quantisation scheme does not fit the graph.",
        what,
        "It was calibrated on another model, or the model was changed since: quantise again.",
    )
