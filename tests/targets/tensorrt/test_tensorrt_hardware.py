"""The real thing: engines built and run by TensorRT on a GPU (`make hardware-test`). Skipped elsewhere.

Not yet run: no machine with TensorRT was at hand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from vitedge.data.preprocess import Preprocess
from vitedge.export.vit import export_vit
from vitedge.targets import get
from vitedge.targets.base import BuildRequest
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner
from vitedge.vit.config import uniform

TARGET = get("tensorrt")


@pytest.fixture
def gpu() -> None:
    probe = TARGET.probe()
    if not probe.can_run:
        pytest.skip(f"no TensorRT here: {probe.reason}")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 224, 224, 3), np.uint8)


def graph(path: Path, batch: int | None) -> Path:
    """A ViT of ViT-Ti/16's shape with random weights, made without torch, which a board may lack."""
    config = uniform(image_size=224, patch_size=16, width=192, depth=12, heads=3, hidden=768, classes=1000)
    rng = np.random.default_rng(0)
    shapes = {"patch_embed": (192, 3, 16, 16), "head": (1000, 192)}
    norms = ["norm"]
    for i in range(12):
        shapes |= {f"blocks.{i}.attention.{part}": (192, 192) for part in ("q", "k", "v", "out")}
        shapes |= {f"blocks.{i}.mlp.fc1": (768, 192), f"blocks.{i}.mlp.fc2": (192, 768)}
        norms += [f"blocks.{i}.norm1", f"blocks.{i}.norm2"]
    weights = {"class_token": rng.normal(0, 0.02, (1, 1, 192)), "pos_embedding": rng.normal(0, 0.02, (1, 197, 192))}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
        weights[f"{name}.bias"] = rng.normal(0, 0.02, shape[0])
    for name in norms:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = np.ones(192), np.zeros(192)
    numbers = {name: value.astype(np.float32) for name, value in weights.items()}
    onnx.save(export_vit(config, numbers, Preprocess(resize=248, crop=224), batch=batch), str(path))
    return path


def test_the_graph_is_made_without_a_gpu_too(tmp_path):
    """So that a wrong test is not found only on the board."""
    OnnxRuntimeRunner(graph(tmp_path / "float32.onnx", 1)).close()


@pytest.mark.hardware
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("precision", "sqnr"), [("fp32", 60), ("fp16", 35)])
@pytest.mark.parametrize(("batch", "profiles"), [(1, None), (None, "1:4:8"), (None, "1,8")])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_an_engine_computes_what_onnx_runtime_does(tmp_path, pixels, precision, sqnr, batch, profiles, cuda_graph):
    source = graph(tmp_path / "float32.onnx", batch)
    reference = OnnxRuntimeRunner(source).infer(pixels)
    out = tmp_path / "out"
    out.mkdir()
    options = TARGET.Options(dynamic_batch=profiles, cuda_graph=cuda_graph, opt_level=2)
    result = TARGET.build(
        BuildRequest(source, out, precision, None, options, pixels=pixels, reference_logits=reference)
    )
    if precision == "fp16":
        assert result.metadata["engine"]["attention_fused"] == "12/12"
    runner = TARGET.open(out / result.artifact, result.metadata)
    try:
        for n in (1, 3, 16):
            logits = runner.infer(pixels[:n])
            noise = ((logits - reference[:n]) ** 2).sum()
            assert 10 * np.log10((reference[:n] ** 2).sum() / noise) > sqnr
        assert runner.last_times.compute_ms > 0
    finally:
        runner.close()
