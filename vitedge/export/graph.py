"""A small builder of ONNX graphs in which every node and value has a name that a person can find."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vitedge import __version__

# The newest opset that ONNX Runtime, TensorRT 10, OpenVINO and rknn-toolkit2 all take.
OPSET = 18
# IR version 9 belongs to opset 20; 8 is the newest that every runtime since 2022 reads.
IR_VERSION = 8


class GraphBuilder:
    """Collects nodes and initialisers; a node's name is also the name of the value that it makes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: int, shape: list[int | str]) -> str:
        """Declares a graph input; a string in the shape is a free dimension."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: int, shape: list[int | str]) -> None:
        """Declares the value `name` to be a graph output."""
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def constant(self, name: str, array: np.ndarray) -> str:
        """An initialiser; the same name again is the same constant."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def shape(self, *dims: int) -> str:
        """An int64 vector constant, named by its content."""
        return self.constant("shape_" + "_".join(str(d) for d in dims), np.array(dims, np.int64))

    def op(self, op: str, inputs: list[str], name: str, *, domain: str = "", **attributes: Any) -> str:
        """Adds a node with one output and returns the output's name, which is the node's."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def op_outputs(self, op: str, inputs: list[str], names: list[str], **attributes: Any) -> list[str]:
        """Adds a node with several outputs, named as the first of them; returns their names."""
        self.nodes.append(helper.make_node(op, inputs, names, name=names[0], **attributes))
        return names

    def array(self, name: str) -> np.ndarray:
        """The initialiser of that name."""
        return numpy_helper.to_array(self.initializers[name])

    def linear(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """x [..., in] times weight [out, in] transposed, plus bias [out]; the sum carries the name."""
        product = self.op("MatMul", [x, self.constant(f"{name}.weight", weight.T)], f"{name}.matmul")
        return self.op("Add", [product, self.constant(f"{name}.bias", bias)], name)

    def build(self) -> onnx.ModelProto:
        """The checked model, with inferred shapes."""
        used = {name for node in self.nodes for name in node.input}
        constants = [tensor for name, tensor in self.initializers.items() if name in used]
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="vitedge",
            producer_version=__version__,
        )
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        onnx.checker.check_model(model, full_check=False)
        return model
