"""Real builds by the real compiler. Needs `vitedge toolchain install rknn`, or VITEDGE_RKNN_PYTHON."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from vitedge import targets
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.export.vit import export_vit
from vitedge.onnx_graph.editor import with_outputs
from vitedge.targets.base import BuildRequest
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner
from vitedge.targets.rknn import toolchain
from vitedge.targets.rknn.client import Worker, selftest
from vitedge.targets.rknn.graph import run_graph
from vitedge.vit.config import uniform
from vitedge.vit.model import VisionTransformer

pytestmark = pytest.mark.slow
TARGET = targets.get("rknn")


@pytest.fixture(scope="session")
def tools() -> toolchain.Toolchain:
    try:
        return toolchain.find()
    except VitedgeError as error:
        pytest.skip(f"{error.what} {error.todo}")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks, with an outlier unit in the second MLP, and a batch-1 graph."""
    torch.manual_seed(0)
    config = uniform(image_size=64, patch_size=16, width=64, depth=2, heads=2, hidden=128, classes=10)
    model = VisionTransformer(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or "norm" not in name:
                parameter.normal_(0, 0.1)
        model.blocks[1].mlp.fc1.weight[3] *= 30
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    path = tmp_path_factory.mktemp("small") / "float32.onnx"
    onnx.save(export_vit(config, weights, Preprocess(64, 64), 1), path)
    return path


def images(count: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC)) for x in small])


def build(path: Path, out: Path, precision: str, pixels: np.ndarray, platform: str | None = None, **options):
    out.mkdir(exist_ok=True)
    request = BuildRequest(path, out, precision, platform, TARGET.Options(**options), pixels)
    return TARGET.build(request)


def sqnr(reference: np.ndarray, logits: np.ndarray) -> float:
    return float(10 * np.log10(np.square(reference).sum() / np.square(reference - logits).sum()))


def test_the_toolchain_works(tools: toolchain.Toolchain) -> None:
    assert selftest(tools)["toolkit"] == tools.version
    assert TARGET.probe().can_build and TARGET.probe().device == "simulator"


def test_fp16_is_built_simulated_and_costed(
    tools: toolchain.Toolchain, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = images(8, 64)
    # As from the command line, where the run folder is relative.
    monkeypatch.chdir(tmp_path)
    result = build(small, Path("out"), "fp16", pixels, compare_export=True)
    assert result.metadata["vendor_cycles_before"] > 1.2 * result.metadata["vendor_cycles"]
    assert (tmp_path / "out" / result.artifact).stat().st_size > 10_000
    assert result.metadata["platform"] == "rk3588" and result.metadata["cpu_fallbacks"] == []
    table = TARGET.cost(tmp_path / "out" / result.artifact, result.metadata)
    assert table is not None and table.total_cycles and "exSDPAttention" in table.not_modelled
    assert {r.dtype for r in table.rows} == {"float16"}
    # What the compiler is to fuse.
    assert {"exSDPAttention", "ConvExGelu", "exNorm", "ConvAdd"} <= {r.op for r in table.rows}
    runner = TARGET.open(tmp_path / "out" / result.artifact, result.metadata)
    try:
        assert runner.device == "simulator"
        assert sqnr(run_graph(small, pixels), runner.infer(pixels)) > 40
    finally:
        runner.close()
    assert "Network Layer" in (tmp_path / "out" / "build.log").read_text(errors="replace")


def test_another_platform_is_built_though_its_cycles_are_not_modelled(
    tools: toolchain.Toolchain, small: Path, tmp_path: Path
) -> None:
    result = build(small, tmp_path / "out", "fp16", images(2, 64), "rk3576")
    table = TARGET.cost(tmp_path / "out" / result.artifact, result.metadata)
    assert result.metadata["platform"] == "rk3576" and result.metadata["vendor_cycles"] is None
    assert table is not None and table.rows and "No cycles" in table.not_modelled


def test_int8_by_search_reopens_to_the_same_logits(tools: toolchain.Toolchain, small: Path, tmp_path: Path) -> None:
    pixels = images(24, 64)
    result = build(small, tmp_path / "out", "int8", pixels, calib_images=8, check_images=16, max_drop=0.0)
    quantisation = result.metadata["quantisation"]
    assert quantisation["algorithm"] == "normal" and quantisation["trials"]
    chosen = min(quantisation["trials"], key=lambda t: t["lost"])
    assert quantisation["agreement"] == chosen["agreement"]
    full = build(
        small, tmp_path / "full", "int8", pixels, calib_images=8, check_images=16, preset="full", algorithm="normal"
    )
    assert set(full.metadata["quantisation"]["float16_parts"]) <= {"patch", "head"}
    blocks = [r for r in full.metadata["cost"]["rows"] if "block" in r["name"] and "cvt" not in r["name"]]
    assert {r["dtype"] for r in blocks} == {"int8"}
    runner = TARGET.open(tmp_path / "full" / full.artifact, full.metadata)
    try:
        logits = runner.infer(pixels)
        assert np.array_equal(logits, runner.infer(pixels))
        assert sqnr(run_graph(small, pixels), logits) > 3
    finally:
        runner.close()


def test_attention_in_parts_and_block_outputs(tools: toolchain.Toolchain, small: Path, tmp_path: Path) -> None:
    """The same logits without the fused operator, and the values between the blocks besides."""
    pixels, taps = images(4, 64), ("embed", "block0.residual1", "block0.residual2", "block1.residual2")
    (tmp_path / "out").mkdir()
    options = TARGET.Options(attention="parts")
    result = TARGET.build(BuildRequest(small, tmp_path / "out", "fp16", "rk3576", options, pixels, taps=taps))
    assert not any("SDPA" in row["op"] for row in result.metadata["cost"]["rows"])
    assert not any("#574" in line for line in result.warnings)
    runner = TARGET.open(tmp_path / "out" / result.metadata["blocks"]["artifact"], result.metadata)
    try:
        logits, *values = runner.outputs(pixels[:2])
    finally:
        runner.close()
    right = OnnxRuntimeRunner(small, model=with_outputs(onnx.load(small), taps).SerializeToString()).outputs(pixels[:2])
    for found, expected in zip([logits, *values], right, strict=True):
        assert sqnr(expected.reshape(2, -1), found.reshape(2, -1)) > 40


def test_a_platform_that_the_toolkit_refuses_is_told_in_its_words(tools: toolchain.Toolchain, small: Path) -> None:
    with Worker(tools) as worker, pytest.raises(VitedgeError, match="rk9999"):
        worker.request("build_float", onnx=str(small), platform="rk9999", channels=3)


def test_another_toolkits_artifact_is_not_simulated(tools: toolchain.Toolchain, small: Path, tmp_path: Path) -> None:
    result = build(small, tmp_path / "out", "fp16", images(2, 64))
    with pytest.raises(VitedgeError, match=r"built by rknn-toolkit2 2\.3\.2"):
        TARGET.open(tmp_path / "out" / result.artifact, result.metadata | {"toolkit": "2.3.2"})


@pytest.mark.real
def test_vit_ti_16_loses_half_its_cycles(tools: toolchain.Toolchain, shared_data: Path, tmp_path: Path) -> None:
    from vitedge.vit.checkpoint import load_model

    loaded = load_model(str(shared_data / "vit_ti_16"))
    weights = {k: v.numpy() for k, v in loaded.model.state_dict().items()}
    path = tmp_path / "float32.onnx"
    onnx.save(export_vit(loaded.model.config, weights, loaded.preprocess, 1), path)
    files = sorted(f for f in (shared_data / "calib").rglob("*") if f.suffix.lower() in (".jpeg", ".jpg"))[:8]
    images = [Image.open(f).convert("RGB").resize((224, 224)) for f in files]
    pixels = np.stack([np.asarray(image) for image in images])
    result = build(
        path, tmp_path / "out", "int8", pixels, calib_images=4, check_images=4, preset="full", algorithm="normal"
    )
    # 5.44 M as exported by torch; the last block is computed for [CLS] alone, and the patch embedding is rewritten.
    assert result.metadata["vendor_cycles"] < 1_250_000
    assert result.metadata["cpu_fallbacks"] == []
