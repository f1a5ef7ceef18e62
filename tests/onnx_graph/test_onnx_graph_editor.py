"""Editing a graph: order, names, what is dropped; and that the model given stays as it is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitedge.onnx_graph.builder import GraphBuilder
from vitedge.onnx_graph.editor import GraphEditor, checked, set_attribute, with_float_pixels, with_outputs
from vitedge.onnx_graph.matcher import Graph, attribute, input_shape, taps_of, value_shapes
from vitedge.onnx_graph.session import open_session


def small() -> onnx.ModelProto:
    """y = (2 x) + (2 x) + 1, with the names of an exported graph."""
    g = GraphBuilder("small")
    g.input("x", TensorProto.FLOAT, ["batch", 3])
    double = g.op("Mul", ["x", g.constant("two", np.float32(2))], "embed")
    g.constant("unused", np.zeros(3))
    twice = g.op("Add", [double, double], "block0.residual1")
    g.op("Add", [twice, g.constant("one", np.float32(1))], "y")
    g.output("y", TensorProto.FLOAT, ["batch", 3])
    return g.build()


def run(model: onnx.ModelProto) -> np.ndarray:
    return open_session(model.SerializeToString()).run(None, {"x": np.array([[1, 2, 3]], np.float32)})[0][0]


def test_what_is_built_is_read() -> None:
    model = small()
    g = Graph(model)
    assert run(model).tolist() == [5, 9, 13] and set(g.tensors) == {"two", "one"}
    assert g.maker("embed", "Mul") is g.makers["embed"] and g.maker("embed", "Add") is None
    assert g.only_reader("block0.residual1", "Add").name == "y" and g.only_reader("embed", "Add") is None
    assert input_shape(model) == (-1, 3) == value_shapes(model)["embed"]
    assert g.array("one").tolist() == [1] and g.array("x") is None
    assert taps_of(model) == ["embed", "block0.residual1"]


def test_nodes_that_are_added_last_are_sorted_and_what_no_output_needs_is_dropped() -> None:
    model = small()
    before, g = model.SerializeToString(), GraphEditor(model)
    g.op("Sub", ["x", g.constant("three", np.array([3], np.float32))], "shifted")
    g.replace("embed", "shifted")
    edited = g.finish()
    assert [node.name for node in edited.graph.node] == ["shifted", "block0.residual1", "y"]
    assert {t.name for t in edited.graph.initializer} == {"three", "one"} and not edited.graph.value_info
    assert run(checked(edited)).tolist() == [-3, -1, 1]
    assert model.SerializeToString() == before


def test_nodes_that_are_taken_keep_the_order_in_which_they_are_added() -> None:
    g = GraphEditor(small())
    for node in g.take():
        if node.name == "y":
            node.input[0] = g.op("Neg", ["block0.residual1"], "negative")
        g.keep(node)
    edited = g.finish()
    assert [node.name for node in edited.graph.node] == ["embed", "block0.residual1", "negative", "y"]
    assert run(edited).tolist() == [-3, -7, -11]


def test_a_constant_is_replaced_by_a_node_of_its_name() -> None:
    g = GraphEditor(small())
    nodes = g.take()
    g.write_int8("two", np.array([[4]], np.int8), np.array([0.5], np.float32))
    for node in nodes:
        g.keep(node)
    edited = checked(g.finish())
    assert {t.name for t in edited.graph.initializer} == {"two.int8", "two.scale", "two.zero", "one"}
    assert run(edited).tolist() == [5, 9, 13]


def test_a_name_that_is_taken_gets_a_number() -> None:
    g = GraphEditor(small())
    assert [g.unique(name) for name in ("new", "new", "embed", "two", "x")] == [
        "new", "new/2", "embed/2", "two/2", "x/2"
    ]  # fmt: skip
    g.take()
    assert g.unique("y") == "y/2", "a node that is not yet added again has its name"


def test_a_diverted_value_is_read_behind_what_is_added() -> None:
    g = GraphEditor(small())
    g.op("Neg", [g.divert("embed")], "embed")
    assert run(g.finish()).tolist() == [-3, -7, -11]


def test_a_scalar_stays_one() -> None:
    g = GraphEditor(small())
    g.constant("one", np.array(5, np.float32))
    assert numpy_helper.to_array(g.tensors["one"]).shape == ()


def test_attributes() -> None:
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    set_attribute(node, "to", TensorProto.FLOAT16)
    set_attribute(node, "saturate", 0)
    assert (
        attribute(node, "to") == TensorProto.FLOAT16 and attribute(node, "saturate") == 0 and len(node.attribute) == 2
    )
    assert attribute(node, "axis", 7) == 7


def test_further_outputs_and_float_pixels_are_of_a_copy() -> None:
    model = small()
    assert [value.name for value in with_outputs(model, ["embed"]).graph.output] == ["y", "embed"]
    with pytest.raises(KeyError, match="nothing"):
        with_outputs(model, ["nothing"])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    assert with_float_pixels(model).graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8 and len(model.graph.output) == 1
