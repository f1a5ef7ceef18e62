"""Small operations on an ONNX graph that the rewrites share."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import numpy_helper


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """The value of a node's attribute, or `default`."""
    for found in node.attribute:
        if found.name == name:
            return onnx.helper.get_attribute_value(found)
    return default


def constant(model: onnx.ModelProto, name: str) -> np.ndarray | None:
    """The initialiser of that name as an array, or None."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    return None


def add_constant(model: onnx.ModelProto, name: str, array: np.ndarray) -> str:
    """Adds an initialiser, unless there is one of that name; returns the name."""
    if constant(model, name) is None:
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name


def consumers(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    """The nodes that read this value."""
    return [node for node in model.graph.node if name in node.input]


def replace_nodes(model: onnx.ModelProto, old: Iterable[onnx.NodeProto], new: Iterable[onnx.NodeProto]) -> None:
    """Puts the nodes `new` where the first of `old` stood, and drops constants that nothing reads any more."""
    gone, nodes = list(old), list(model.graph.node)
    at = min(nodes.index(node) for node in gone)
    kept = [node for node in nodes[:at] if node not in gone]
    kept += list(new)
    kept += [node for node in nodes[at:] if node not in gone]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    initializers = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(initializers)
    # Inferred shapes of values that are gone, or changed, would contradict the new graph.
    del model.graph.value_info[:]


def static_shape(value: onnx.ValueInfoProto) -> list[int] | None:
    """The shape of a graph input or output, or None where a dimension is free."""
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value for d in dims] if all(d.HasField("dim_value") for d in dims) else None
