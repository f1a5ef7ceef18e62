"""Values inside an exported graph as further outputs: to find the block that a board computes wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_TAP = re.compile(r"embed|block\d+\.residual[12]")


def taps_of(model: onnx.ModelProto) -> list[str]:
    """The embedding and each block's two residual sums, in the order of the graph."""
    return [name for node in model.graph.node for name in node.output if _TAP.fullmatch(name)]


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy that gives these float values too, after its own outputs. Raises KeyError where one is not there."""
    import onnx
    from onnx import TensorProto

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    made = {name for node in copy.graph.node for name in node.output}
    shaped = {value.name: value for value in copy.graph.value_info}
    for name in names:
        if name not in made:
            raise KeyError(name)
        # Where the shape is not known, the runtimes infer it.
        value = shaped.get(name) or onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        copy.graph.output.append(value)
    return copy


def with_float_pixels(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose input is float32: the Cast behind it then does nothing."""
    import onnx
    from onnx import TensorProto

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return copy
