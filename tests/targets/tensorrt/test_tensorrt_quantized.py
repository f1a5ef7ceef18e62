"""Q/DQ by TensorRT's rules: signed, symmetric, on both factors of a Linear, with the scheme's zero points
kept.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from tests.vit.variants import PLAIN, VARIANTS, images, make
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.export.float16 import to_float16
from vitedge.export.float16_emulate import emulate_float16
from vitedge.export.vit import export_vit
from vitedge.onnx_graph.ranges import measure_ranges
from vitedge.quant import QuantOptions, calibrate
from vitedge.quant.scheme import Activation, Scheme, Weight
from vitedge.targets.tensorrt import quantized
from vitedge.targets.tensorrt.check import attentions, graph_problems
from vitedge.targets.tensorrt.quantized import insert_quantizers, place, shift_of, symmetric_scale
from vitedge.vit.block import Merge
from vitedge.vit.config import uniform
from vitedge.vit.model import VisionTransformer, init_weights


def run(model: onnx.ModelProto, pixels: np.ndarray, names: list[str] | None = None) -> list[np.ndarray]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names or [])
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # Q/DQ as it stands: fused INT8 kernels saturate on CPUs without VNNI, and nothing of that is TensorRT's.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(names or ["logits"], {"pixels": pixels})


def sqnr(a: np.ndarray, reference: np.ndarray) -> float:
    return 10 * np.log10((reference**2).sum() / ((a - reference) ** 2).sum())


@pytest.fixture(scope="module")
def case() -> SimpleNamespace:
    """A 2-block ViT with two groups of MLP units in block 0, images, and a min-max scheme with zero points."""
    config = uniform(image_size=32, patch_size=8, width=32, depth=2, heads=2, hidden=64, classes=10)
    config = config.with_block(0, groups=(16, 48))
    state = init_weights(VisionTransformer(config)).state_dict()
    weights = {name: value.numpy() for name, value in state.items()}
    rng = np.random.default_rng(0)
    for name in weights:
        if name.endswith(".bias"):
            weights[name] = rng.normal(0, 0.3, weights[name].shape).astype(np.float32)
    model = export_vit(config, weights, Preprocess(resize=36, crop=32), batch=None)
    pixels = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    matrices, activations = {}, {}
    for name, value in constants.items():
        if name.endswith(".weight") and value.ndim in (2, 4):
            axis = 0 if value.ndim == 4 else 1
            other = tuple(a for a in range(value.ndim) if a != axis)
            scale = (np.abs(value).max(other) / 127).astype(np.float32)
            shape = [1] * value.ndim
            shape[axis] = -1
            integers = np.round(value / scale.reshape(shape)).astype(np.int8)
            matrices[name.removesuffix(".weight")] = Weight(integers, scale, axis)
    values = ["block0.mlp.gelu.0", "block0.mlp.gelu.1", "block1.mlp.gelu", "norm"]
    for i in range(2):
        values += [f"block{i}.{v}" for v in ("norm1", "norm2", "attention.context")]
        values += [f"block{i}.attention.{v}" for v in ("q", "k", "v", "probs")]
    for name, seen in zip(values, run(model, pixels, values), strict=True):
        low, high = min(float(seen.min()), 0.0), float(seen.max())
        scale = (high - low) / 255
        activations[name] = Activation(scale, round(-low / scale))
    activations["pixels"] = Activation(1.0, 0)
    biases = {"block1.mlp.fc2": constants["block1.mlp.fc2.bias"] * np.float32(1)}
    return SimpleNamespace(
        model=model, pixels=pixels, scheme=Scheme("linear", activations, matrices, biases), constants=constants
    )


def test_the_arithmetic_is_that_of_the_scheme(case):
    """x less its shift holds the same integers as unsigned ones with the scheme's zero point."""
    placed, facts = place(case.model, case.scheme)
    names = ["block0.mlp.gelu.1", "block0.mlp.gelu.1.shifted.dq", "block0.mlp.gelu.1.shifted.q"]
    value, dequantized, integers = run(placed, case.pixels, names)
    a = case.scheme.activations["block0.mlp.gelu.1"]
    q = np.clip(np.round(value / a.scale) + a.zero_point, 0, 255)
    assert integers.dtype == np.int8
    # A rounding tie may fall on the other side after the shift.
    assert np.abs(integers.astype(int) + 128 - q).max() <= 1
    assert (integers.astype(int) + 128 == q).mean() > 0.999
    assert np.abs(dequantized + shift_of(a) - a.scale * (q - a.zero_point)).max() <= a.scale * 1.01
    # The biases take the shift back: a wrong one would leave nothing of the logits.
    assert sqnr(run(placed, case.pixels)[0], run(case.model, case.pixels)[0]) > 25
    assert "block0.mlp.fc2.1" in facts["linears"]


def test_zero_points_keep_a_bit_that_symmetric_scales_lose(case):
    symmetric = {n: Activation(symmetric_scale(a), 128) for n, a in case.scheme.activations.items()}
    reference = run(case.model, case.pixels)[0]
    ours = sqnr(run(place(case.model, case.scheme)[0], case.pixels)[0], reference)
    plain, _ = place(case.model, replace(case.scheme, activations=symmetric))
    assert ours > sqnr(run(plain, case.pixels)[0], reference)


@pytest.mark.parametrize("group", ["0", "1"])
def test_one_group_of_units_in_float(case, group):
    """As mixed precision leaves it; the other group's shift still ends in the shared bias."""
    value = f"block0.mlp.gelu.{group}"
    activations = {n: a for n, a in case.scheme.activations.items() if n != value}
    placed, facts = place(case.model, replace(case.scheme, activations=activations))
    assert facts["float"][f"block0.mlp.fc2.{group}"] == "the scheme keeps its input in float"
    assert sqnr(run(placed, case.pixels)[0], run(case.model, case.pixels)[0]) > 25


def test_where_quantisers_stand(case):
    placed, facts = place(case.model, case.scheme)
    assert not graph_problems(placed)
    readers = {i: n for n in placed.graph.node for i in n.input}
    for node in placed.graph.node:
        if node.op_type == "DequantizeLinear":
            assert readers[node.output[0]].op_type == "MatMul", node.name
    quantised = [n.input[0] for n in placed.graph.node if n.op_type == "QuantizeLinear"]
    # One pair a value, shared by q, k and v; weights have none.
    assert len(quantised) == len(set(quantised)) and not any("weight" in name for name in quantised)
    reasons = facts["float"]
    assert "uint8 pixels" in reasons["patch_embed"]
    # In the last block and the head only [CLS] is left.
    assert {n for n, r in reasons.items() if "[CLS]" in r} == {
        "head",
        *(f"block1.{part}" for part in ("attention.q", "attention.out", "mlp.fc1", "mlp.fc2")),
    }
    assert {"block1.attention.k", "block1.attention.v", "block0.mlp.fc1.0"} <= set(facts["linears"])


def test_integer_weights_are_stored_as_such(case):
    placed, _ = place(case.model, case.scheme)
    stored = {i.name: i for i in placed.graph.initializer}
    assert stored["block0.attention.q.weight.int8"].data_type == TensorProto.INT8
    assert "block0.attention.q.weight" not in stored
    # What stays in float keeps its own weights.
    assert np.array_equal(numpy_helper.to_array(stored["head.weight"]), case.constants["head.weight"])


def test_typed(case):
    """INT8 Linears with everything around them in FP16, and the scales too."""
    placed, _ = place(case.model, case.scheme)
    typed = to_float16(placed, measure_ranges(placed, case.pixels, threads=1))
    assert typed.model.opset_import[0].version == 19
    assert not graph_problems(typed.model)
    kinds = {v.name: v.type.tensor_type.elem_type for v in typed.model.graph.value_info}
    assert kinds["block0.norm1.shifted.q"] == TensorProto.INT8
    assert kinds["block0.norm1.shifted.dq"] == kinds["block0.attention.q.matmul"] == TensorProto.FLOAT16
    assert {k.op for k in typed.kept} == {"LayerNormalization"}
    reference = run(case.model, case.pixels)[0]
    assert sqnr(run(emulate_float16(typed.model), case.pixels)[0], reference) > 25


def test_int8_attention_only_where_a_kernel_serves_it(case):
    placed, facts = place(case.model, case.scheme, attention=True)
    first, last = attentions(placed)
    assert first.int8 and first.reason == "" and facts["attention"] == ["block0.attention.probs"]
    assert not last.int8 and "[CLS]" in facts["float"]["block1.attention.probs"]
    without = {n: a for n, a in case.scheme.activations.items() if not n.endswith("probs")}
    _, facts = place(case.model, replace(case.scheme, activations=without), attention=True)
    assert "preset 'full'" in facts["float"]["block0.attention.probs"] and not facts["attention"]


@pytest.mark.parametrize("name", ["attention pool", "merged", "windows and stages"])
def test_int8_attention_reads_q_k_v_and_probabilities_alone(name, monkeypatch):
    """The sizes of merged tokens are added between the product and softmax; a pool's query is a constant."""
    merge = Merge(12, (), matched=True)
    model = make(PLAIN.with_block(0, merge=merge) if name == "merged" else VARIANTS[name])
    preprocess = Preprocess.centred(model.config.image_size, model.config.channels)
    x = images(model.config)
    scheme = calibrate(model, lambda: iter([x]), QuantOptions(preset="full"), preprocess)
    graph = export_vit(model.config, {n: v.numpy() for n, v in model.state_dict().items()}, preprocess, batch=1)
    monkeypatch.setattr(quantized, "fusable", lambda *size, **more: "")
    placed, facts = place(graph, scheme, attention=True)
    assert facts["attention"]
    if name == "attention pool":
        assert "same for all images" in facts["float"]["pool.attention.probs"]
    made = {node.output[0]: node for node in placed.graph.node}
    for probs in facts["attention"]:
        block = probs.removesuffix(".probs")
        readers = [n for n in placed.graph.node if n.op_type == "MatMul" and n.output[0].startswith(f"{block}.")]
        products = [n for n in readers if n.output[0] in (f"{block}.scores", f"{block}.context.heads")]
        assert len(products) == 2
        assert all(made[value].op_type == "DequantizeLinear" for n in products for value in n.input)
    assert not [n for n in placed.graph.node if n.op_type == "QuantizeLinear" and "scores" in n.input[0]]


def test_refusals(case, tmp_path):
    request = SimpleNamespace(quant=None, options=SimpleNamespace(int8_attention=False))
    with pytest.raises(VitedgeError, match="no quantisation scheme"):
        insert_quantizers(request, case.model)
    foreign = replace(case.scheme, weights={"other": case.scheme.weights["head"]})
    with pytest.raises(VitedgeError, match="does not fit the graph"):
        place(case.model, foreign)
    case.scheme.save(tmp_path)
    request.quant = tmp_path
    _, facts = insert_quantizers(request, case.model)
    assert len(facts["linears"]) == 10
    replace(case.scheme, preset="dynamic").save(tmp_path)
    with pytest.raises(VitedgeError, match="no dynamic quantisation"):
        insert_quantizers(request, case.model)


@pytest.mark.parametrize("version", ["11.4.0.106"])
def test_an_int8_build(case, tmp_path, version, apis, device, monkeypatch):
    """The whole build on the stand-in: scheme, Q/DQ, types, attention, engine, metadata."""
    import json
    import sys

    from vitedge.targets import get
    from vitedge.targets.base import BuildRequest
    from vitedge.targets.tensorrt import trtexec

    helper, bindings = sys.modules["tensorrt_test_standin"], sys.modules["tensorrt_test_bindings"]
    script = {
        "Builder.build_serialized_network": lambda *_: b"plan",
        "ITimingCache.serialize": lambda _: b"",
        "INetworkDefinition.num_inputs": lambda _: 0,
    }
    monkeypatch.setitem(sys.modules, "tensorrt", helper.make(apis[version], script, bindings))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trtexec, "find_trtexec", lambda: None)
    target = get("tensorrt")
    case.scheme.save(tmp_path / "quant")
    onnx.save(case.model, str(tmp_path / "float32.onnx"))
    out = tmp_path / "out"
    out.mkdir()
    request = BuildRequest(
        tmp_path / "float32.onnx", out, "int8", None, target.Options(), pixels=case.pixels, quant=tmp_path / "quant"
    )
    facts = target.build(request).metadata
    assert len(facts["graph"]["quantized"]["linears"]) == 10 and facts["graph"]["attention"]["fusable"] == "2/2"
    assert any(n.op_type == "QuantizeLinear" for n in onnx.load(str(out / "model.onnx")).graph.node)
    json.dumps(facts, allow_nan=False)
