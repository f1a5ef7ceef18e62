"""Integer products for ONNX Runtime: every Q/DQ product is found, and the result is the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from vitedge.data.preprocess import Preprocess
from vitedge.export.vit import export_vit
from vitedge.quant import QuantOptions, calibrate, insert_qdq
from vitedge.targets.onnxruntime.rewrites import apply
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner
from vitedge.targets.onnxruntime.target import saturation_warnings

PREPROCESS = Preprocess(resize=32, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def quantized(tiny_model) -> tuple[onnx.ModelProto, np.ndarray]:
    """A Q/DQ graph and pictures."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    batches = lambda: iter([torch.from_numpy(PREPROCESS.normalize(pixels))])  # noqa: E731
    scheme = calibrate(tiny_model, batches, QuantOptions(rounding="nearest", correct=False), PREPROCESS)
    weights = {name: tensor.numpy() for name, tensor in tiny_model.state_dict().items()}
    return insert_qdq(export_vit(tiny_model.config, weights, PREPROCESS, 32), scheme), pixels


def run(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    return OnnxRuntimeRunner(Path("memory"), threads=1, model=model.SerializeToString()).infer(pixels)


def test_every_product_becomes_an_integer_one(quantized) -> None:
    graph, pixels = quantized
    makers = {name: node.op_type for node in graph.graph.node for name in node.output}
    products = [node for node in graph.graph.node if node.op_type == "MatMul"]
    integer = [n for n in products if {makers.get(name) for name in n.input} == {"DequantizeLinear"}]
    rewritten, found = apply(graph)
    counts = Counter(node.op_type for node in rewritten.graph.node)
    assert len(integer) >= 10, "patches, and q, k, v, out, fc1, fc2 of a block, are integer products"
    assert found["integer_products"] == counts["MatMulIntegerToFloat"] == len(integer)
    assert counts["MatMul"] == len(products) - len(integer)
    # What is still dequantised are the weights of products whose activations the scheme keeps in float.
    left = {node.output[0] for node in rewritten.graph.node if node.op_type == "DequantizeLinear"}
    assert all(name.endswith(".weight") for name in left)
    before, after = run(graph, pixels), run(rewritten, pixels)
    assert np.abs(after - before).max() < 0.02 * np.ptp(before)
    assert (after.argmax(1) == before.argmax(1)).mean() > 0.9


def test_a_float_graph_is_left_alone(tiny_model) -> None:
    weights = {name: tensor.numpy() for name, tensor in tiny_model.state_dict().items()}
    graph = export_vit(tiny_model.config, weights, PREPROCESS, 1)
    rewritten, found = apply(graph)
    assert found == {"integer_products": 0} and rewritten == graph


@pytest.mark.parametrize(("flags", "warned"), [("avx2 fma", True), ("avx512f avx512_vnni", False), ("avx_vnni", False)])
def test_cpus_whose_products_saturate(tmp_path, monkeypatch, flags, warned) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: fpu {flags}\n")
    assert bool(saturation_warnings(tmp_path / "cpuinfo")) == warned
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert not saturation_warnings(tmp_path / "cpuinfo")
