"""Typed FP16 graphs: types, exceptions, ranges, the exact scaling; and agreement on the trained ViT-Ti/16."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.export.float16 import FLOAT16_MAX, Float16Options, to_float16, weight_error
from vitedge.export.float16_emulate import emulate_float16
from vitedge.export.float16_rescale import rescale_residual
from vitedge.export.typed import typed_graph
from vitedge.export.vit import export_vit
from vitedge.onnx_graph.ranges import float_values, measure_ranges
from vitedge.vit.block import Merge
from vitedge.vit.config import uniform
from vitedge.vit.model import VisionTransformer, init_weights

PREPROCESS = Preprocess(resize=36, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)
WRITERS = ("patch_embed.", "class_token", "pos_embedding", ".attention.out.", ".mlp.fc2.")
LIMIT = Float16Options().limit


def tiny_weights(scale: float = 1.0, seed: int = 0) -> tuple:
    """A 2-block ViT with outlier channels, its residual stream times `scale`."""
    config = uniform(image_size=32, patch_size=8, width=32, depth=2, heads=2, hidden=48, classes=10)
    model = init_weights(VisionTransformer(config), seed)
    weights = {k: v.detach().numpy().copy() for k, v in model.state_dict().items()}
    weights["blocks.0.mlp.fc2.weight"][3] *= 40
    for name in weights:
        if any(part in name for part in WRITERS):
            weights[name] = weights[name] * np.float32(scale)
    return config, weights


def tiny(scale: float = 1.0, batch: int | None = None) -> onnx.ModelProto:
    config, weights = tiny_weights(scale)
    return export_vit(config, weights, PREPROCESS, batch=batch)


def images(n: int = 12, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), np.uint8)


def run(model: onnx.ModelProto, pixels: np.ndarray, step: int = 4) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"pixels": pixels[i : i + step]})[0] for i in range(0, len(pixels), step)]
    return np.concatenate(parts)


def types(model: onnx.ModelProto) -> dict[str, int]:
    return {v.name: v.type.tensor_type.elem_type for v in [*model.graph.value_info, *model.graph.output]}


def sqnr(a: np.ndarray, reference: np.ndarray) -> float:
    return 10 * np.log10((reference**2).sum() / ((a - reference) ** 2).sum())


@pytest.mark.parametrize("batch", [1, 4, None])
def test_ranges_equal_those_of_the_values_themselves(batch):
    model, pixels = tiny(batch=batch), images()
    names = ["block0.attention.scores", "block1.mlp.gelu", "block0.residual2"]
    everything = onnx.ModelProto()
    everything.CopyFrom(model)
    everything.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names)
    session = ort.InferenceSession(everything.SerializeToString(), providers=["CPUExecutionProvider"])
    step = batch or 4
    seen = [session.run(names, {"pixels": pixels[i : i + step]}) for i in range(0, len(pixels), step)]
    ranges = measure_ranges(model, pixels, threads=1)
    assert set(ranges) == set(float_values(model))
    for i, name in enumerate(names):
        assert ranges[name] == pytest.approx(max(np.abs(values[i]).max() for values in seen), rel=1e-5)


def test_an_overflow_does_not_hide_in_the_ranges():
    config, weights = tiny_weights()
    weights["blocks.0.mlp.fc1.weight"][0, 0] = np.inf
    ranges = measure_ranges(export_vit(config, weights, PREPROCESS, batch=None), images(4), threads=1)
    assert ranges["block0.mlp.fc1"] == np.inf
    assert ranges["block0.norm2"] < 100


def test_every_value_is_fp16_but_what_is_named():
    model = tiny()
    result = to_float16(model, measure_ranges(model, images(), threads=1))
    kinds, norms = (
        types(result.model),
        [n.name for n in model.graph.node if n.op_type == "LayerNormalization"],
    )
    assert [k.node for k in result.kept] == norms and not result.exceptions()
    for value in float_values(model):
        wanted = TensorProto.FLOAT if value in norms or value == "logits" else TensorProto.FLOAT16
        assert kinds[value] == wanted, value
    assert {i.name: i.type.tensor_type.elem_type for i in result.model.graph.input} == {"pixels": TensorProto.UINT8}
    # Each norm: one cast in, one out, shared by its readers; and the logits.
    assert result.casts == 2 * len(norms) + 1
    onnx.checker.check_model(result.model, full_check=True)


def test_weights_are_rounded_once_and_norms_keep_theirs():
    model = tiny()
    result = to_float16(model, measure_ranges(model, images(), threads=1))
    before = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    after = {i.name: numpy_helper.to_array(i) for i in result.model.graph.initializer}
    assert np.array_equal(after["block0.norm1.scale"], before["block0.norm1.scale"])
    weight = after["block0.attention.q.weight.float16"]
    assert weight.dtype == np.float16
    assert np.array_equal(weight, before["block0.attention.q.weight"].astype(np.float16))
    assert "block0.attention.q.weight" not in after


def test_a_value_beyond_the_limit_stays_in_fp32_with_its_neighbours():
    model = tiny(scale=3e5)
    ranges = measure_ranges(model, images(), threads=1)
    result = to_float16(model, ranges)
    assert result.largest <= LIMIT < max(ranges.values())
    kinds = types(result.model)
    for value, largest in ranges.items():
        if largest > LIMIT:
            assert kinds[value] == TensorProto.FLOAT, value
    named = {k.node: k for k in result.exceptions()}
    assert named["block1.residual1"].range == pytest.approx(ranges["block1.residual1"], rel=0.5)
    assert "reaches" in named["block1.residual1"].reason
    logits = run(emulate_float16(result.model), images())
    assert np.isfinite(logits).all() and sqnr(logits, run(model, images())) > 40


def test_weights_that_vanish_stay_in_fp32():
    config, weights = tiny_weights()
    weights["blocks.1.mlp.fc1.weight"] *= np.float32(1e-6)
    weights["blocks.1.mlp.fc2.weight"] *= np.float32(1e6)
    model = export_vit(config, weights, PREPROCESS, batch=None)
    result = to_float16(model, measure_ranges(model, images(), threads=1))
    named = {k.node: k.reason for k in result.exceptions()}
    assert "weight block1.mlp.fc1.weight" in named["block1.mlp.fc1.matmul"]
    assert "weight block1.mlp.fc2.weight: relative error inf" in named["block1.mlp.fc2.matmul"]
    assert np.isfinite(run(emulate_float16(result.model), images())).all()


def test_weight_error():
    normal = np.random.default_rng(0).normal(0, 1, 1000).astype(np.float32)
    assert 1e-4 < weight_error(normal) < 3e-4
    assert weight_error(normal * 1e-7) > 0.05
    assert weight_error(np.array([1.0, 1e5], np.float32)) == float("inf")
    assert weight_error(np.zeros(3, np.float32)) == 0
    # A summand may vanish beside what it is added to.
    assert weight_error(normal * 1e-9, added_to=1.0) < 1e-7 < weight_error(normal * 1e-9, added_to=1e-6)


def test_the_emulation_rounds_and_overflows_where_plain_onnx_runtime_does_not():
    """ONNX Runtime's CPU drops the rounding between FP16 operators, so it can't show an overflow."""
    model, pixels = tiny(scale=3e5), images()
    ranges = measure_ranges(model, pixels, threads=1)
    naive = to_float16(model, ranges, Float16Options(limit=np.inf, keep_ops=frozenset(), weight_error=np.inf))
    assert not np.isfinite(run(emulate_float16(naive.model), pixels)).any()
    small = to_float16(tiny(), measure_ranges(tiny(), pixels, threads=1)).model
    assert 30 < sqnr(run(emulate_float16(small), pixels), run(tiny(), pixels)) < 75


def test_the_emulation_makes_no_name_twice():
    model = to_float16(tiny(), measure_ranges(tiny(), images(), threads=1)).model
    # A value that is called as the helper of another one.
    old, new = "block0.mlp.fc1", "block0.attention.q/exact"
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    next(value for value in model.graph.value_info if value.name == old).name = new
    emulated = emulate_float16(model)
    made = [name for node in emulated.graph.node for name in node.output]
    assert len(made) == len(set(made))
    assert np.isfinite(run(emulated, images())).all()


@pytest.mark.parametrize("batch", [1, 4, None])
def test_scaling_the_stream_is_exact(batch):
    model, pixels = tiny(scale=3e5, batch=batch), images()
    ranges = measure_ranges(model, pixels, threads=1)
    scaled, new, done = rescale_residual(model, ranges, LIMIT)
    assert done.exponent > 0 and done.before > LIMIT and done.after <= LIMIT / 4 and not done.reason
    before, after = run(model, pixels, batch or 4), run(scaled, pixels, batch or 4)
    # A power of two changes no digit of a weight.
    assert np.abs(after - before).max() <= 1e-6 * np.ptp(before)
    measured = measure_ranges(scaled, pixels, threads=1)
    for value, largest in new.items():
        assert largest == pytest.approx(measured[value], rel=1e-4, abs=1e-6), value
    result = to_float16(scaled, new)
    assert not result.exceptions()
    assert sqnr(run(emulate_float16(result.model), pixels, batch or 4), before) > 40


def test_a_stream_that_fits_is_left_alone():
    model = tiny()
    ranges = measure_ranges(model, images(), threads=1)
    scaled, new, done = rescale_residual(model, ranges, LIMIT)
    assert scaled is model and new is ranges and done.exponent == 0 and done.reason == ""


def test_a_stream_that_something_else_reads_is_not_scaled():
    model = tiny(scale=3e5)
    graph = model.graph
    graph.node.append(onnx.helper.make_node("Tanh", ["block0.residual1"], ["extra"], name="extra"))
    graph.output.append(onnx.helper.make_tensor_value_info("extra", TensorProto.FLOAT, None))
    scaled, _, done = rescale_residual(model, measure_ranges(tiny(scale=3e5), images(), threads=1), LIMIT)
    assert scaled is model and done.exponent == 0
    assert "Tanh extra reads block0.residual1" in done.reason


def test_a_weight_with_a_second_reader_is_not_scaled():
    model = tiny(scale=3e5)
    graph = model.graph
    graph.node.append(onnx.helper.make_node("Tanh", ["pos_embedding"], ["extra"], name="extra"))
    graph.output.append(onnx.helper.make_tensor_value_info("extra", TensorProto.FLOAT, None))
    _, _, done = rescale_residual(model, measure_ranges(tiny(scale=3e5), images(), threads=1), LIMIT)
    assert "Tanh extra reads pos_embedding" in done.reason


def test_typed_graph_reports():
    result = typed_graph(tiny(scale=3e5), images(), threads=1)
    report = result.report()
    assert report["images"] == 12 and report["residual"]["exponent"] > 0
    assert 0 < report["share_of_float16_max"] == report["largest"] / FLOAT16_MAX <= 0.5
    assert {k["op"] for k in report["float32"]} == {"LayerNormalization"}


def test_refusals():
    with pytest.raises(VitedgeError, match="no calibration images"):
        measure_ranges(tiny(), images(0))
    with pytest.raises(VitedgeError, match=r"\(64, 64, 3\)"):
        measure_ranges(tiny(), np.zeros((2, 64, 64, 3), np.uint8))
    config, weights = tiny_weights()
    weights["blocks.0.mlp.fc1.weight"][0, 0] = np.nan
    with pytest.raises(VitedgeError, match="infinities or NaN"):
        typed_graph(export_vit(config, weights, PREPROCESS, batch=None), images(4), threads=1)


@pytest.mark.real
def test_trained_vit_in_fp16(trained, photographs):
    """No FP16 value beyond half of FP16's maximum, nothing but LayerNorms in FP32, and the same answers."""
    config, weights, preprocess = trained
    model = export_vit(config, weights, preprocess, batch=None)
    result = typed_graph(model, photographs["calib"], threads=1)
    assert {k.op for k in result.kept} == {"LayerNormalization"} and len(result.kept) == 25
    assert result.largest <= 0.5 * FLOAT16_MAX
    reference = run(model, photographs["val"], 8)
    logits = run(emulate_float16(result.model), photographs["val"], 8)
    assert (logits.argmax(1) == reference.argmax(1)).mean() >= 0.97  # one image of 48
    assert sqnr(logits, reference) > 45


@pytest.mark.real
def test_the_ranges_of_a_large_vit_in_fp16(trained, photographs):
    """The residual stream times 1000: naive FP16 gives no number at all, the exact scaling loses nothing."""
    config, weights, preprocess = trained
    scaled = {
        name: value * np.float32(1000) if any(part in name for part in WRITERS) else value
        for name, value in weights.items()
    }
    model = export_vit(config, scaled, preprocess, batch=None)
    reference = run(model, photographs["val"], 8)
    ranges = measure_ranges(model, photographs["calib"], threads=1)
    naive = to_float16(model, ranges, Float16Options(np.inf, frozenset(), np.inf))
    assert not np.isfinite(run(emulate_float16(naive.model), photographs["val"][:8])).any()
    result = typed_graph(model, photographs["calib"], threads=1)
    assert result.scale.exponent > 0 and {k.op for k in result.kept} == {"LayerNormalization"}
    logits = run(emulate_float16(result.model), photographs["val"], 8)
    assert (logits.argmax(1) == reference.argmax(1)).mean() >= 0.97
    assert sqnr(logits, reference) > 45


@pytest.mark.parametrize("batch", [1, None])
def test_merged_tokens_are_chosen_in_float32(batch) -> None:
    config, weights = tiny_weights()
    config = config.with_block(0, merge=Merge(11))
    graph = export_vit(config, weights, PREPROCESS, batch=batch)
    result = to_float16(graph, measure_ranges(graph, images()))
    kept = {k.node for k in result.kept}
    assert {"block0.merge.cosine", "block0.merge.best", "block0.merge.sorted"} <= kept
    assert types(result.model)["block0.merged"] == TensorProto.FLOAT16
    before, after = run(graph, images(), batch or 4), run(result.model, images(), batch or 4)
    assert np.median(np.abs(after - before).max(1)) < 5e-3 * np.ptp(before)
