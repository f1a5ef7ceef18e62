"""A small builder of ONNX graphs in which every node and value has a name that a person can find."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from vitedge import __version__
from vitedge.onnx_graph.editor import GraphEditor, checked

# The newest opset that ONNX Runtime, TensorRT 10, OpenVINO and rknn-toolkit2 all take.
OPSET = 18
# IR version 9 belongs to opset 20; 8 is the newest that every runtime since 2022 reads.
IR_VERSION = 8


class GraphBuilder(GraphEditor):
    """A graph from nothing; a node's name is also the name of the value that it makes."""

    def __init__(self, name: str) -> None:
        graph = helper.make_graph([], name, [], [])
        opset = [helper.make_opsetid("", OPSET)]
        super().__init__(
            helper.make_model(
                graph,
                opset_imports=opset,
                ir_version=IR_VERSION,
                producer_name="vitedge",
                producer_version=__version__,
            )
        )

    def input(self, name: str, dtype: int, shape: list[int | str]) -> str:
        """Declares a graph input; a string in the shape is a free dimension."""
        self.model.graph.input.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        """A constant, [1] where it is a scalar; the same name again is the same constant."""
        return name if name in self.tensors else super().constant(name, np.ascontiguousarray(value))

    def linear(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """x [..., in] times weight [out, in] transposed, plus bias [out]; the sum carries the name."""
        return self.write_linear(x, name, weight.T, None, bias)

    def build(self) -> onnx.ModelProto:
        """The checked model, with inferred shapes."""
        return checked(self.finish())
