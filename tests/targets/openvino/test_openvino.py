"""The target `openvino` on a small ViT: what it builds computes what ONNX Runtime computes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError, install_command
from vitedge.export.vit import export_vit
from vitedge.host.cpu import saturates
from vitedge.quant import QuantOptions, calibrate, insert_qdq
from vitedge.targets.base import BuildRequest
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner
from vitedge.targets.openvino import TARGET, graph, runner

pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")

PREPROCESS = Preprocess(resize=32, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def graphs(tiny_model, tmp_path) -> dict[str, Path]:
    """float32.onnx and int8.onnx, batch 3; those of 7 and 8 bits have such weights on any CPU."""
    weights = {name: tensor.numpy() for name, tensor in tiny_model.state_dict().items()}
    float32 = export_vit(tiny_model.config, weights, PREPROCESS, 3)
    batches = lambda: iter([torch.from_numpy(PREPROCESS.normalize(PIXELS))])  # noqa: E731
    # Without VNNI, OpenVINO's sums of products with 8-bit weights saturate.
    onnx.save(float32, tmp_path / "float32.onnx")
    for name, bits in (("int8", 7 if saturates() else 8), ("int8-of-7-bits", 7), ("int8-of-8-bits", 8)):
        options = QuantOptions(rounding="nearest", correct=False, weight_bits=bits)
        onnx.save(insert_qdq(float32, calibrate(tiny_model, batches, options, PREPROCESS)), tmp_path / f"{name}.onnx")
    return {name: tmp_path / f"{name}.onnx" for name in ("float32", "int8", "int8-of-7-bits", "int8-of-8-bits")}


def request(graphs: dict[str, Path], precision: str, name: str = "built", **options: object) -> BuildRequest:
    out = graphs["float32"].parent / f"{name}-{precision}"
    out.mkdir()
    made = TARGET.Options(**options)
    return BuildRequest(graphs["float32"], out, precision, None, made, onnx_by_precision=graphs)


@pytest.mark.parametrize(
    ("precision", "floats", "near"), [("fp32", "fp32", 1e-4), ("bf16", "bf16", 0.05), ("int8", "auto", 0.05)]
)
def test_an_artifact_computes_what_the_graph_does(graphs, precision, floats, near) -> None:
    if precision == "bf16" and not runner.computes(runner.load().Core(), "bf16"):
        pytest.skip("this CPU has no bf16")
    asked = request(graphs, precision)
    built = TARGET.build(asked)
    assert (asked.out / "model.bin").is_file()
    metadata = {"precision": precision} | built.metadata
    assert metadata["floats"] in ("fp32", "bf16") and (floats == "auto" or metadata["floats"] == floats)
    opened = TARGET.open(asked.out / built.artifact, metadata, threads=1)
    assert opened.batch == 3 and opened.settings["INFERENCE_NUM_THREADS"] == 1
    logits = opened.infer(PIXELS[:7])  # two full pieces and a padded one
    opened.close()
    assert logits.shape == (7, 10) and logits.dtype == np.float32
    reference = OnnxRuntimeRunner(graphs["int8" if precision == "int8" else "float32"], threads=1)
    expected = reference.infer(PIXELS[:7])
    assert np.abs(logits - expected).max() < near * np.ptp(expected)


def test_a_cpu_whose_products_saturate_is_named(graphs, monkeypatch) -> None:
    monkeypatch.setattr("vitedge.targets.openvino.target.saturates", lambda: True)
    of = {
        bits: request({**graphs, "int8": graphs[f"int8-of-{bits}-bits"]}, "int8", name=f"{bits} bits")
        for bits in (7, 8)
    }
    (warning,) = TARGET.build(of[8]).warnings
    assert "no VNNI" in warning and "--weight-bits 7" in warning
    assert not TARGET.build(of[7]).warnings
    assert TARGET.weight_bits() == 7
    assert not TARGET.build(request(graphs, "fp32")).warnings


def test_every_quantised_product_runs_in_integers(graphs) -> None:
    built = TARGET.build(request(graphs, "int8"))
    kernels = built.metadata["kernels"]
    products = sum(n for kind, n in kernels.items() if kind.startswith("FullyConnected ") and kind[-2:] in ("i8", "u8"))
    # Patches, and block 0's q, k, v, out, fc1, fc2; the last block's k and v are folded, the rest is one token.
    assert products >= 7 and built.metadata["rewrites"] == {"cls_attention": 1, "keys_as_they_are": 1}


def test_the_rest_of_an_int8_model_in_fp32(graphs) -> None:
    asked = request(graphs, "int8", rest="fp32")
    built = TARGET.build(asked)
    assert built.metadata["floats"] == "fp32"
    assert not any(kind.endswith("bf16") for kind in built.metadata["kernels"])
    opened = TARGET.open(asked.out / built.artifact, {"precision": "int8"} | built.metadata)
    assert opened.settings["INFERENCE_PRECISION_HINT"] == "f32"


def test_results_are_not_overwritten_by_the_next_call(graphs) -> None:
    asked = request(graphs, "fp32")
    built = TARGET.build(asked)
    opened = TARGET.open(asked.out / built.artifact, {"precision": "fp32"} | built.metadata)
    first = opened.infer(PIXELS[:3])
    kept = first.copy()
    opened.infer(PIXELS[3:6])
    assert np.array_equal(first, kept)


def test_no_openvino(graphs, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(VitedgeError, match=r"needs the package 'openvino'") as caught:
        runner.OpenVINORunner(graphs["float32"], "fp32")
    assert caught.value.todo == f"Install it with: {install_command('openvino')}"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    probe = TARGET.probe()
    assert not probe.can_build and not probe.can_run and install_command("openvino") in probe.fix


def test_a_cpu_without_bf16(graphs, monkeypatch) -> None:
    monkeypatch.setattr(runner, "computes", lambda core, precision: precision == "fp32")
    monkeypatch.setattr("vitedge.targets.openvino.target.computes", lambda core, precision: precision == "fp32")
    with pytest.raises(VitedgeError, match="no instructions for bf16"):
        TARGET.build(request(graphs, "bf16"))
    built = TARGET.build(request(graphs, "int8"))
    assert built.metadata["floats"] == "fp32", "auto takes what the CPU has"


def test_bad_files_and_threads(graphs, tmp_path) -> None:
    (tmp_path / "model.xml").write_text("<net")
    with pytest.raises(VitedgeError, match="can't load"):
        runner.OpenVINORunner(tmp_path / "model.xml", "fp32")
    with pytest.raises(VitedgeError, match="999 threads"):
        runner.OpenVINORunner(graphs["float32"], "fp32", threads=999)
    (tmp_path / "broken.onnx").write_bytes(onnx.load(graphs["float32"]).SerializeToString())
    model = onnx.load(tmp_path / "broken.onnx")
    model.graph.node[3].op_type = "OperatorOfTomorrow"
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(VitedgeError, match="can't read the graph"):
        graph.convert(tmp_path / "broken.onnx", "fp32")


def test_an_int8_build_needs_an_int8_graph(graphs) -> None:
    with pytest.raises(VitedgeError, match="no int8 graph"):
        TARGET.build(request({"float32": graphs["float32"]}, "int8"))
