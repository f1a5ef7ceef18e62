"""A small ViT with groups and uneven widths, calibrated, written as Q/DQ and run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.quant.uneven import PREP, conditioned, unconditioned
from vitedge.condition.apply import batched
from vitedge.errors import VitedgeError
from vitedge.export.vit import export_vit
from vitedge.quant import (
    Placement,
    QuantOptions,
    Scheme,
    calibrate,
    insert_qdq,
    quantize_dynamic,
    round_weights,
    simulate,
)
from vitedge.quant.layout import NEGLIGIBLE, units, values
from vitedge.targets.onnxruntime.rewrites import Form, apply, exact_here
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner
from vitedge.vit.model import VisionTransformer, init_weights


@pytest.fixture(scope="module")
def case() -> tuple[VisionTransformer, torch.Tensor, np.ndarray, onnx.ModelProto]:
    model, x, pixels = conditioned()
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    return model, x, pixels, export_vit(model.config, weights, PREP, batch=None)


def run(model: onnx.ModelProto, pixels: np.ndarray) -> torch.Tensor:
    session = onnxruntime.InferenceSession(exact_here(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"pixels": pixels})[0])


def sqnr(reference: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(reference.var() / (reference - other).var()))


@pytest.mark.parametrize("preset", ["linear", "full"])
@pytest.mark.parametrize(
    "placement",
    [Placement(), Placement(signed=True), Placement(patch="conv"), Placement(patch="float")],
    ids=["unsigned", "signed", "conv", "float"],
)
def test_graph_computes_the_simulation(case, preset: str, placement: Placement) -> None:  # type: ignore[no-untyped-def]
    model, x, pixels, graph = case
    scheme = calibrate(model, batched(x), QuantOptions(preset=preset), PREP)  # type: ignore[arg-type]
    quantized = insert_qdq(graph, scheme, placement)
    with torch.no_grad():
        reference, simulated = model(x), simulate(model, scheme, PREP)(x)
    ours = run(quantized, pixels)
    assert sqnr(reference, ours) > (22 if preset == "linear" else 18)
    # A rounding that falls the other way at a tie moves a value by one step: near, not equal.
    assert sqnr(simulated, ours) > sqnr(reference, ours) - 3
    pairs = {n.name for n in quantized.graph.node if n.op_type == "QuantizeLinear"}
    assert {f"{name}.q" for name in scheme.activations if name != "pixels"} <= pairs
    stored = {t.name: t.data_type for t in quantized.graph.initializer}
    assert stored["block0.attention.q.weight.int8"] == onnx.TensorProto.INT8
    assert "block0.attention.q.weight" not in stored


@pytest.mark.parametrize("preset", ["linear", "full"])
@pytest.mark.parametrize("scaled", [False, True], ids=["", "attention's scale not folded"])
def test_what_is_built_for_onnxruntime_is_the_simulation(case, preset: str, scaled: bool) -> None:  # type: ignore[no-untyped-def]
    """Integer products and LayerNorm are equal bit for bit, so that no value falls the other way at a tie."""
    model, x, pixels, _ = case
    if scaled:  # the exported q carries the scale, and so do the values that its step size is chosen from
        model = unconditioned()
    scheme = calibrate(model, batched(x), QuantOptions(preset=preset), PREP)  # type: ignore[arg-type]
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    graph = insert_qdq(export_vit(model.config, weights, PREP, batch=len(x)), scheme)
    built, _ = apply(graph, Form("parts", "apart"))
    ours = OnnxRuntimeRunner(Path("memory"), model=built.SerializeToString()).infer(pixels)
    with torch.no_grad():
        simulated, floats = simulate(model, scheme, PREP)(x), model(x)
    equal = (torch.from_numpy(ours) - simulated).abs().amax(1) < 1e-4 * (simulated.amax(1) - simulated.amin(1))
    assert equal.float().mean() >= 0.9, "softmax and GELU may still differ in the last bit"
    assert not torch.allclose(floats, simulated, rtol=1e-3), "it does round"


def test_without_rounding_the_graph_is_exact(case) -> None:  # type: ignore[no-untyped-def]
    """Weights alone, activations float: what is left is float rounding."""
    model, x, pixels, graph = case
    full = calibrate(model, batched(x), QuantOptions(), PREP)
    only_weights = Scheme("linear", {"pixels": full.activations["pixels"]}, full.weights, full.biases)
    with torch.no_grad():
        simulated = simulate(model, only_weights, PREP)(x)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(insert_qdq(graph, only_weights).SerializeToString(), options)
    ours = torch.from_numpy(session.run(None, {"pixels": pixels})[0])
    assert (ours - simulated).abs().max() < 1e-4 * (simulated.max() - simulated.min())


def test_symmetric_scheme_for_targets_without_zero_points(case) -> None:  # type: ignore[no-untyped-def]
    model, x, pixels, graph = case
    placement = Placement(signed=True, symmetric=True, patch="float")
    scheme = calibrate(model, batched(x), QuantOptions(symmetric=True), PREP)
    quantized = insert_qdq(graph, scheme, placement)
    zeros = [t for t in quantized.graph.initializer if t.name.endswith(".q.zero")]
    assert zeros and all(not onnx.numpy_helper.to_array(t).any() for t in zeros)
    with torch.no_grad():
        assert sqnr(model(x), run(quantized, pixels)) > 20
    with pytest.raises(VitedgeError, match="zero point"):
        insert_qdq(graph, calibrate(model, batched(x), QuantOptions(), PREP), placement)


def test_dynamic(case) -> None:  # type: ignore[no-untyped-def]
    model, x, pixels, graph = case
    with torch.no_grad():
        reference = model(x)
    fitted = run(quantize_dynamic(graph, round_weights(model, batched(x), None, PREP)), pixels)
    blind = run(quantize_dynamic(graph, round_weights(model, None, None, PREP)), pixels)
    assert sqnr(reference, fitted) > 22 and sqnr(reference, blind) > 20
    ops = [n.op_type for n in quantize_dynamic(graph, round_weights(model, None, None, PREP)).graph.node]
    linears = [u for u in units(model.config) if u.source in values(model.config, "linear")]
    assert ops.count("MatMulInteger") == len(linears)


def test_same_bytes(case, tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, x, _, graph = case
    one, two = (calibrate(model, batched(x), QuantOptions(preset="full"), PREP) for _ in range(2))
    one.save(tmp_path / "1")
    two.save(tmp_path / "2")
    for name in ("scheme.json", "scheme.safetensors"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert insert_qdq(graph, one).SerializeToString() == insert_qdq(graph, two).SerializeToString()


def test_scheme_of_another_graph(case) -> None:  # type: ignore[no-untyped-def]
    model, x, _, graph = case
    scheme = calibrate(model, batched(x), QuantOptions(), PREP)
    other = init_weights(VisionTransformer(model.config.with_block(0, hidden=48, groups=())))
    weights = {k: v.numpy() for k, v in other.state_dict().items()}
    with pytest.raises(VitedgeError, match="does not fit"):
        insert_qdq(export_vit(other.config, weights, PREP), scheme)
    strange = Scheme("linear", {"block9.norm1": scheme.activations["block0.norm1"]}, {}, {})
    with pytest.raises(VitedgeError, match=r"block9\.norm1"):
        insert_qdq(graph, strange)


def test_negligible_products_keep_float_activations(case) -> None:  # type: ignore[no-untyped-def]
    model = case[0]
    found = units(model.config)
    names = values(model.config, "linear")
    head = next(u for u in found if u.name == "head")
    assert 0 < NEGLIGIBLE < 0.05 and head.source == "norm"
    assert "block0.norm1" in names


def test_no_images(case) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(VitedgeError, match="no calibration images"):
        calibrate(case[0], lambda: iter(()), QuantOptions(), PREP)


def test_nan_names_image(case) -> None:  # type: ignore[no-untyped-def]
    model, x, _, _ = case
    x = x.clone()
    x[9] = float("inf")
    with pytest.raises(VitedgeError, match="image 9"):
        calibrate(model, batched(x, 4), QuantOptions(), PREP)
