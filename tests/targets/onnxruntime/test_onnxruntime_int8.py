"""Integer products for ONNX Runtime: every Q/DQ product is found, and the result is the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.export.vit import export_vit
from vitedge.host.cpu import saturates
from vitedge.quant import QuantOptions, calibrate, insert_qdq, round_weights
from vitedge.quant.dynamic import quantize_dynamic
from vitedge.targets.onnxruntime.rewrites import Form, apply, exact_here
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner
from vitedge.targets.onnxruntime.target import OnnxRuntimeOptions, OnnxRuntimeTarget
from vitedge.targets.onnxruntime.tune import write_fastest

PREPROCESS = Preprocess(resize=32, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def quantized(tiny_model) -> tuple[onnx.ModelProto, np.ndarray]:
    """A Q/DQ graph and images."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    batches = lambda: iter([torch.from_numpy(PREPROCESS.normalize(pixels))])  # noqa: E731
    scheme = calibrate(tiny_model, batches, QuantOptions(rounding="nearest", correct=False), PREPROCESS)
    weights = {name: tensor.numpy() for name, tensor in tiny_model.state_dict().items()}
    return insert_qdq(export_vit(tiny_model.config, weights, PREPROCESS, 32), scheme), pixels


def run(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    return OnnxRuntimeRunner(Path("memory"), threads=1, model=exact_here(model).SerializeToString()).infer(pixels)


def test_every_product_becomes_an_integer_one(quantized) -> None:
    graph, pixels = quantized
    makers = {name: node.op_type for node in graph.graph.node for name in node.output}
    products = [node for node in graph.graph.node if node.op_type == "MatMul"]
    integer = [n for n in products if {makers.get(name) for name in n.input} == {"DequantizeLinear"}]
    rewritten, found = apply(graph, Form("parts", "apart"))
    counts = Counter(node.op_type for node in rewritten.graph.node)
    assert len(integer) >= 10, "patches, and q, k, v, out, fc1, fc2 of a block, are integer products"
    # The last block's k and v are folded into four products of single rows.
    assert found["integer_products"] == counts["MatMulIntegerToFloat"] == len(integer) - 2
    assert counts["MatMul"] == len(products) - len(integer) + 2
    # Two products of the last block are in float, and their weights are no longer of the form that MatMulNBits takes.
    left = {node.output[0] for node in rewritten.graph.node if node.op_type == "DequantizeLinear"}
    assert left == {"block1.norm1.dq"} and found["float_weights"] == counts["Cast"]
    before, after = run(graph, pixels), run(rewritten, pixels)
    assert np.abs(after - before).max() < 0.02 * np.ptp(before)
    assert (after.argmax(1) == before.argmax(1)).mean() > 0.9


def test_activations_in_float_stay_so_in_any_session(quantized) -> None:
    """ONNX Runtime's MatMulNBits would round them to int8; a session with no options of ours must not get it."""
    graph, pixels = quantized
    rewritten, found = apply(graph, Form("parts", "apart"))
    assert found["float_weights"] > 0
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    results = [
        ort.InferenceSession(rewritten.SerializeToString(), o, providers=["CPUExecutionProvider"]).run(
            None, {"pixels": pixels}
        )[0]
        for o in (ort.SessionOptions(), options)
    ]
    assert np.abs(results[0] - results[1]).max() < 1e-5 * np.ptp(results[1])


def test_attention_of_integers_is_multiplied_as_integers(tiny_model) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    batches = lambda: iter([torch.from_numpy(PREPROCESS.normalize(pixels))])  # noqa: E731
    options = QuantOptions(preset="full", rounding="nearest", correct=False)
    scheme = calibrate(tiny_model, batches, options, PREPROCESS)
    weights = {name: tensor.numpy() for name, tensor in tiny_model.state_dict().items()}
    graph = insert_qdq(export_vit(tiny_model.config, weights, PREPROCESS, 8), scheme)
    rewritten, found = apply(graph, Form("parts", "joined"))
    assert found["integer_attention"] == 2, "scores and context of the first block; the last has one query, in float"
    makers = {name: node.op_type for node in rewritten.graph.node for name in node.output}
    for name in ("block0.attention.scores", "block0.attention.context.heads"):
        assert makers[name] == "MatMulIntegerToFloat"
    before, after = run(graph, pixels), run(rewritten, pixels)
    assert np.abs(after - before).max() < 0.02 * np.ptp(before)


@pytest.mark.parametrize("attention", ["packed", "heads"])
def test_attention_becomes_one_operator(quantized, tiny_model, attention) -> None:
    graph, pixels = quantized
    weights = {name: tensor.numpy() for name, tensor in tiny_model.state_dict().items()}
    float_graph = export_vit(tiny_model.config, weights, PREPROCESS, 32)
    for model, operator, near in ((graph, "QAttention", 0.02), (float_graph, "Attention", 1e-5)):
        rewritten, found = apply(model, Form(attention, "joined"))
        operators = Counter(node.op_type for node in rewritten.graph.node)
        wanted = operator if attention == "packed" else "MultiHeadAttention"
        # The last block has one query, and no attention left to fuse.
        assert found["fused_attention"] == operators[wanted] == 1 and operators["Softmax"] == 1
        before, after = run(model, pixels), run(rewritten, pixels)
        assert np.abs(after - before).max() < near * np.ptp(before)


def test_dynamic_products_take_the_same_operators(tiny_model) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    weights = {name: tensor.numpy() for name, tensor in tiny_model.state_dict().items()}
    graph = quantize_dynamic(export_vit(tiny_model.config, weights, PREPROCESS, 8), round_weights(tiny_model, None))
    integers = sum(node.op_type == "MatMulInteger" for node in graph.graph.node)
    rewritten, found = apply(graph, Form("packed", "joined"))
    operators = Counter(node.op_type for node in rewritten.graph.node)
    assert found["dynamic_products"] == integers >= 10 and not operators["MatMulInteger"]
    assert operators["QAttention"] == 1
    # One QAttention took three products, and the last block's k and v are folded.
    assert found["integer_products"] == operators["MatMulIntegerToFloat"] == integers - 5
    before, after = run(graph, pixels), run(rewritten, pixels)
    assert np.abs(after - before).max() < 0.02 * np.ptp(before)


@pytest.mark.parametrize("attention", ["packed", "heads", "parts"])
def test_unsigned_weights_are_the_same_weights(quantized, attention) -> None:
    graph, pixels = quantized
    signed, _ = apply(graph, Form(attention, "joined", "int8"))
    unsigned, found = apply(graph, Form(attention, "joined", "uint8"))
    kinds = {tensor.data_type for tensor in unsigned.graph.initializer if len(tensor.dims) == 2}
    read = {node.input[1] for node in unsigned.graph.node if node.op_type in ("MatMulIntegerToFloat", "QAttention")}
    assert found["unsigned_weights"] >= 7 and onnx.TensorProto.UINT8 in kinds
    assert not [t.name for t in unsigned.graph.initializer if t.name in read and t.data_type == onnx.TensorProto.INT8]
    assert Counter(n.op_type for n in signed.graph.node) == Counter(n.op_type for n in unsigned.graph.node)
    # The graph as it stands is computed in float (`disable_quant_qdq`), so that it saturates nowhere.
    before = OnnxRuntimeRunner(Path("memory"), threads=1, model=graph.SerializeToString()).infer(pixels)
    after = OnnxRuntimeRunner(Path("memory"), threads=1, model=unsigned.SerializeToString()).infer(pixels)
    assert np.abs(after - before).max() < 0.02 * np.ptp(before)


def test_weights_of_7_bits_cannot_saturate(tiny_model) -> None:
    """Without VNNI, x86 adds two products of uint8 and int8 in 16 bits (vpmaddubsw): done so here, by hand."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    batches = lambda: iter([torch.from_numpy(PREPROCESS.normalize(pixels))])  # noqa: E731
    wrong = {}
    for bits in (7, 8):
        scheme = calibrate(tiny_model, batches, QuantOptions(rounding="nearest", weight_bits=bits), PREPROCESS)
        worst = 0
        for weight in scheme.weights.values():
            w = np.abs(weight.values.astype(np.int32)).reshape(len(weight.values), -1)
            # The worst input has 255 wherever it hurts: pairs of one column, next to each other along the sum.
            worst = max(worst, int((255 * (w[0:-1:2] + w[1::2][: len(w[0:-1:2])])).max()))
        wrong[bits] = worst > 32767
    assert wrong == {7: False, 8: True}


def test_options_that_are_named_are_not_timed(quantized, tmp_path) -> None:
    graph, pixels = quantized
    onnx.save(graph, tmp_path / "int8.onnx")
    auto = write_fastest(tmp_path / "int8.onnx", tmp_path / "auto.onnx", OnnxRuntimeOptions(), pixels)
    assert set(auto["timed_ms"]) == {"packed joined", "heads joined", "parts joined"}, "no groups: joined is apart"
    assert all(t > 0 for t in auto["timed_ms"].values())
    fixed = OnnxRuntimeOptions(attention="parts", mlp_groups="apart")
    named = write_fastest(tmp_path / "int8.onnx", tmp_path / "parts.onnx", fixed, pixels)
    assert named["timed_ms"] == {} and named["form"] == asdict(Form("parts", "apart"))
    assert named["operators"]["Softmax"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["auto.onnx", "int8.onnx", "parts.onnx"], "no trial is left"


def test_more_threads_than_processors(quantized) -> None:
    with pytest.raises(VitedgeError, match=r"999 threads were asked for.*may use") as caught:
        OnnxRuntimeRunner(Path("memory"), threads=999, model=quantized[0].SerializeToString())
    assert caught.value.exit_code == 2 and "--threads" in caught.value.todo


def test_an_older_runtime_names_the_version_that_is_needed(tmp_path) -> None:
    node = onnx.helper.make_node("OperatorOfTomorrow", ["x"], ["y"], domain="com.microsoft")
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy")
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [x], [y]),
        opset_imports=[onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(VitedgeError, match=r"which was built with 99\.1\.0") as caught:
        OnnxRuntimeTarget().open(tmp_path / "model.onnx", {"onnxruntime": "99.1.0"})
    assert "onnxruntime>=99.1.0" in caught.value.todo and "OperatorOfTomorrow" in caught.value.why


@pytest.mark.parametrize(("flags", "warned"), [("avx2 fma", True), ("avx512f avx512_vnni", False), ("avx_vnni", False)])
def test_cpus_whose_products_saturate(tmp_path, monkeypatch, flags, warned) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: fpu {flags}\n")
    assert saturates(tmp_path / "cpuinfo") == warned
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert not saturates(tmp_path / "cpuinfo")
