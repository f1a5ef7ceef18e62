"""Attention as the fused kernel wants it, and graphs that TensorRT's parser refuses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitedge.targets.tensorrt.check import attentions, fusable, graph_problems


def attention(
    *, head: int = 64, tokens: int = 17, scale_after: bool = False, quantized: tuple[str, ...] = (), opset: int = 19
) -> onnx.ModelProto:
    """One attention: q [1, 2, N, head] times k, softmax, times v."""
    nodes, constants = [], [numpy_helper.from_array(np.float32(0.1), "scale")]
    constants.append(numpy_helper.from_array(np.int8(0), "zero"))

    def node(op: str, inputs: list[str], name: str, **attributes) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def maybe_quantized(value: str) -> str:
        if value not in quantized:
            return value
        q = node("QuantizeLinear", [value, "scale", "zero"], f"{value}.q")
        return node("DequantizeLinear", [q, "scale", "zero"], f"{value}.dq")

    # Copies, so that the factors are made by nodes as in a real graph.
    q, k, v = (node("Mul", [f"{x}_in", "scale"], x) for x in "qkv")
    scores = node("MatMul", [maybe_quantized(q), maybe_quantized(k)], "scores")
    if scale_after:
        scores = node("Mul", [scores, "scale"], "scaled")
    probs = node("Softmax", [scores], "probs", axis=-1)
    node("MatMul", [maybe_quantized(probs), maybe_quantized(v)], "context")
    shapes = {"q": [1, 2, tokens, head], "k": [1, 2, head, tokens], "v": [1, 2, tokens, head]}
    inputs = [helper.make_tensor_value_info(f"{n}_in", TensorProto.FLOAT, s) for n, s in shapes.items()]
    outputs = [helper.make_tensor_value_info("context", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "attention", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def test_the_pattern():
    (block,) = attentions(attention())
    assert (block.softmax, block.head_size, block.value_size, block.tokens) == ("probs", 64, 64, 17)
    assert not block.int8 and block.reason == ""


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"scale_after": True}, "Mul stands between the product and the softmax"),
        ({"head": 12}, "head size is 12"),
        ({"head": 36}, "in steps of 8"),
        ({"head": 264}, "head size is 264"),
        ({"quantized": ("q", "k")}, "not on softmax, V"),
        ({"quantized": ("q", "k", "v")}, "not on softmax"),
        ({"quantized": ("q", "k", "probs", "v"), "head": 48}, "INT8 attention is fused for (16, 32, 64)"),
        ({"quantized": ("q", "k", "probs", "v"), "tokens": 577}, "577 tokens"),
    ],
)
def test_what_can_not_be_fused_says_why(options, reason):
    (block,) = attentions(attention(**options))
    assert reason in block.reason


def test_int8_attention():
    (block,) = attentions(attention(quantized=("q", "k", "probs", "v")))
    assert block.int8 and block.reason == ""
    assert fusable(64, 197, int8=True) == "" and fusable(80, 197) == ""


def test_twelve_of_twelve(trained_graphs):
    """ViT-Ti/16, as float32 and as typed FP16: no Cast, no scale, nothing between the three."""
    for model in trained_graphs:
        blocks = attentions(model)
        assert [block.softmax for block in blocks] == [f"block{i}.attention.probs" for i in range(12)]
        assert all(block.reason == "" and block.head_size == 64 for block in blocks)
        assert {block.tokens for block in blocks} == {197}
        makers = {o: n.op_type for n in model.graph.node for o in n.output}
        for node in model.graph.node:
            if node.op_type == "Softmax":
                assert makers[node.input[0]] == "MatMul"
    types = {v.name: v.type.tensor_type.elem_type for v in trained_graphs[1].graph.value_info}
    for i in range(12):
        for part in ("scores", "probs", "context.heads", "q.heads", "k.transposed", "v.heads"):
            assert types[f"block{i}.attention.{part}"] == TensorProto.FLOAT16


@pytest.fixture(scope="module")
def trained_graphs() -> list[onnx.ModelProto]:
    """The graphs of a 12-block ViT of ViT-Ti/16's shape; random weights do for a pattern."""
    from vitedge.data.preprocess import Preprocess
    from vitedge.export.float16 import to_float16
    from vitedge.export.vit import export_vit
    from vitedge.onnx_graph.ranges import measure_ranges
    from vitedge.vit.config import uniform
    from vitedge.vit.model import VisionTransformer, init_weights

    config = uniform(image_size=224, patch_size=16, width=192, depth=12, heads=3, hidden=768, classes=1000)
    state = init_weights(VisionTransformer(config)).state_dict()
    weights = {name: value.numpy() for name, value in state.items()}
    model = export_vit(config, weights, Preprocess(resize=248, crop=224), batch=1)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    return [model, to_float16(model, measure_ranges(model, pixels, threads=1)).model]


def test_our_graphs_have_no_problem(trained_graphs):
    assert [graph_problems(model) for model in trained_graphs] == [[], []]


def test_problems_name_node_operator_and_version():
    model = attention(quantized=("q",), opset=21)
    for tensor in model.graph.initializer:
        if tensor.name == "zero":
            tensor.CopyFrom(numpy_helper.from_array(np.int8(3), "zero"))
    model.graph.node.append(helper.make_node("Attention", ["q", "k", "v"], ["a"], name="attention"))
    model.graph.node.append(helper.make_node("Det", ["q"], ["d"], name="det"))
    model.graph.node.append(helper.make_node("Gelu", ["q"], ["g"], name="gelu", domain="com.microsoft"))
    found = {p.node: (p.op, p.reason) for p in graph_problems(model)}
    assert "takes up to 20" in found["(graph)"][1]
    assert "zero point 0" in found["q.q"][1]
    assert found["attention"] == ("Attention", "TensorRT has it since 11.0 (opset 23)")
    assert "no such operator" in found["det"][1] and "ONNX Runtime's own" in found["gelu"][1]


def test_unsigned_quantisation_is_refused():
    model = attention(quantized=("q",))
    for tensor in model.graph.initializer:
        if tensor.name == "zero":
            tensor.CopyFrom(numpy_helper.from_array(np.uint8(0), "zero"))
    assert "int8 only" in graph_problems(model)[0].reason
