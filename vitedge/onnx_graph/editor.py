"""A copy of an ONNX graph to be changed. Imports onnx only when called, as a board may not have it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitedge.onnx_graph.matcher import Graph

if TYPE_CHECKING:
    import onnx

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Gives a node's attribute this value, in the place of another one."""
    from onnx import helper

    at = next((i for i, found in enumerate(node.attribute) if found.name == name), len(node.attribute))
    del node.attribute[at : at + 1]
    node.attribute.insert(at, helper.make_attribute(name, value))


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inferred shapes. Raises onnx's errors where it is no valid one."""
    import onnx

    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    onnx.checker.check_model(model)
    return model


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy that gives these float values too, after its own outputs. Raises KeyError where one is not there."""
    from onnx import TensorProto, helper

    made = {name for node in model.graph.node for name in node.output}
    if missing := [name for name in names if name not in made]:
        raise KeyError(missing[0])
    changed, shaped = copy.deepcopy(model), {value.name: value for value in model.graph.value_info}
    for name in names:
        # Where the shape is not known, the runtimes infer it.
        value = shaped.get(name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        changed.graph.output.append(value)
    return changed


def with_float_pixels(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose input is float32: the Cast behind it then does nothing."""
    from onnx import TensorProto

    changed = copy.deepcopy(model)
    changed.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return changed


class GraphEditor(Graph):
    """A copy of a model. Nodes are added and removed in any order; or all are taken out, and added one after the other
    again with what is new in between. `finish` gives the model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(copy.deepcopy(model))
        self.names = {*self.makers, *self.readers, *self.tensors}

    def take(self) -> list[onnx.NodeProto]:
        """All nodes, which the graph has no more: each is changed and given to `keep`, or left out."""
        taken, self.nodes, self.makers, self.readers = self.nodes, [], {}, {}
        return taken

    def keep(self, node: onnx.NodeProto) -> None:
        """Adds a node as it is."""
        self._index(node)

    def op(self, op: str, inputs: list[str], outputs: str | list[str], domain: str = "", **attributes: Any) -> str:
        """Adds a node named as its (first) output, which it returns."""
        from onnx import helper

        names = [outputs] if isinstance(outputs, str) else outputs
        self.names.update(names)
        self._index(helper.make_node(op, inputs, names, name=names[0], domain=domain, **attributes))
        return names[0]

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        """Adds or replaces a constant; returns its name."""
        from onnx import numpy_helper

        # Not np.ascontiguousarray: a scalar stays one, as kernels want it.
        tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
        self.names.add(name)
        if name in self.tensors:
            self.tensors[name].CopyFrom(tensor)
        else:
            self.model.graph.initializer.append(tensor)
            self.tensors[name] = self.model.graph.initializer[-1]
        return name

    def shape(self, *dims: int) -> str:
        """An int64 vector constant, named by its content."""
        return self.constant("shape_" + "_".join(str(d) for d in dims), np.array(dims, np.int64))

    def output(self, name: str, dtype: int, shape: list[int | str]) -> None:
        """Declares the value `name` to be a graph output; a string in the shape is a free dimension."""
        from onnx import helper

        self.model.graph.output.append(helper.make_tensor_value_info(name, dtype, shape))

    def write_linear(self, x: str, name: str, weight: np.ndarray, scale: np.ndarray | None, bias: np.ndarray) -> str:
        """Adds a `matcher.Linear`: x [..., in] times weight [in, out] plus bias [out] is the value `name`."""
        stored = f"{name}.weight"
        if scale is None:
            self.constant(stored, weight)
        else:
            self.write_int8(stored, weight, scale)
        self.op("MatMul", [x, stored], f"{name}.matmul")
        return self.op("Add", [f"{name}.matmul", self.constant(f"{name}.bias", bias)], name)

    def write_int8(self, name: str, values: np.ndarray, scale: np.ndarray, axis: int = 1) -> str:
        """Adds the value `name`, int8 constants times a scale for each place along `axis`; a constant of that name is
        lost."""
        inputs = [
            self.constant(f"{name}.int8", values),
            self.constant(f"{name}.scale", scale.astype(np.float32)),
            self.constant(f"{name}.zero", np.zeros(len(scale), np.int8)),
        ]
        return self.op("DequantizeLinear", inputs, name, axis=axis)

    def unique(self, name: str) -> str:
        """The name, with a number behind it where a value or a constant of the graph has it already."""
        number, found = 1, name
        while found in self.names:
            number += 1
            found = f"{name}/{number}"
        self.names.add(found)
        return found

    def divert(self, value: str) -> str:
        """Frees the name of a value, whose readers then read what is added under it; returns its new name."""
        node, name = self.makers.pop(value), self.unique(f"{value}/exact")
        node.output[list(node.output).index(value)] = name
        if node.name == value:
            node.name = name
        self.makers[name] = node
        return name

    def replace(self, value: str, by: str) -> None:
        """What reads `value` reads `by` instead."""
        for node in self.readers.pop(value, []):
            node.input[:] = [by if name == value else name for name in node.input]
            self.readers.setdefault(by, []).append(node)

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

    def finish(self) -> onnx.ModelProto:
        """The model without unused constants and inferred shapes. Its nodes stand as they were added where they can be
        run so; else they are sorted, and those that no output needs are dropped."""
        from onnx import helper

        graph = self.model.graph
        nodes = self.nodes if self._can_run() else self._sorted([value.name for value in graph.output])
        made = {name for node in nodes for name in node.output}
        # A constant whose name a node makes has lost its place to it.
        used = ({name for node in nodes for name in node.input} | {value.name for value in graph.output}) - made
        for at in reversed(range(len(graph.initializer))):
            if graph.initializer[at].name not in used:
                del graph.initializer[at]
        del graph.node[:], graph.value_info[:]
        graph.node.extend(nodes)
        if any(node.domain == MICROSOFT for node in nodes) and all(
            entry.domain != MICROSOFT for entry in self.model.opset_import
        ):
            self.model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
        return self.model

    def _can_run(self) -> bool:
        waiting = {name for node in self.nodes for name in node.output}
        for node in self.nodes:
            if not waiting.isdisjoint(node.input):
                return False
            waiting.difference_update(node.output)
        return True

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
