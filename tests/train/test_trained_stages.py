"""A small Swin and a small PVT, trained on the drawn shapes, pruned and built in INT8 for every target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import vitedge
from vitedge import metrics, targets
from vitedge.data.folder import open_dataset
from vitedge.data.loader import iter_batches
from vitedge.data.preprocess import Preprocess
from vitedge.data.shapes import SHAPES, write_shapes
from vitedge.errors import VitedgeError
from vitedge.train.scratch import train_small_vit
from vitedge.vit.architecture import Architecture
from vitedge.vit.checkpoint.families import pvt, swin
from vitedge.vit.checkpoint.save import build_model

timm = pytest.importorskip("timm")

DRAWN, TESTED, SIMULATED = 64, 500, 40
EPOCHS = 10


def small_swin() -> Architecture:
    sizes = {"embed_dim": 48, "depths": (1, 2, 1), "num_heads": (2, 3, 4), "window_size": 3}
    own = {"img_size": 48, "num_classes": len(SHAPES), **sizes}
    model = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, **own)
    read = swin.read(model.state_dict(), model)
    return build_model(read.config, read.state)


def small_pvt() -> Architecture:
    sizes = {"depths": (1, 2, 2, 1), "embed_dims": (32, 48, 96, 128), "num_heads": (1, 2, 3, 4)}
    own = {"num_classes": len(SHAPES), "mlp_ratios": (3, 3, 2, 2), **sizes}
    model = timm.create_model("pvt_v2_b0", pretrained=False, **own)
    read = pvt.read(model.state_dict(), model, (DRAWN, DRAWN))
    return build_model(read.config, read.state)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    for split, n in (("train", 3000), ("val", 200), ("test", TESTED), ("calib", 256)):
        write_shapes(folder / split, n, size=DRAWN, split=split)  # type: ignore[arg-type]
    return folder


def infer(run: vitedge.Run, target: str, pixels: np.ndarray) -> np.ndarray:
    artifact = run.build(target, precision="int8")
    runner = targets.get(target).open(artifact.path, artifact.facts)
    try:
        return np.concatenate([runner.infer(pixels[i : i + 1]) for i in range(len(pixels))])
    finally:
        runner.close()


@pytest.mark.slow
@pytest.mark.parametrize("make", [small_swin, small_pvt])
def test_pruned_and_in_int8_on_every_target(make, shapes: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    figures = train_small_vit(shapes, tmp_path / "model", minutes=20, epochs=EPOCHS, model=make())
    assert figures["top1"] >= 0.85
    options = {"prune": 0.2, "quantize": "static", "weight_bits": targets.get("openvino").weight_bits()}
    run = vitedge.compress(tmp_path / "model", calib=shapes / "calib", run=tmp_path / "run", **options)
    dataset = open_dataset(shapes / "test")
    parts = list(iter_batches(dataset, Preprocess.load(tmp_path / "run/source/preprocess.json"), 50))
    pixels, labels = np.concatenate([p for p, _ in parts]), dataset.labels[np.concatenate([i for _, i in parts])]
    graph = tmp_path / "run/onnx/reference.onnx"
    source = targets.get("onnxruntime").open(graph, {}).infer(pixels)
    top1 = float((source.argmax(1) == labels).mean())
    assert top1 == pytest.approx(figures["top1"], abs=0.005)
    for target in ("onnxruntime", "openvino", "rknn"):
        try:
            few = slice(0, SIMULATED if target == "rknn" else None)
            found = infer(run, target, pixels[few])
        except VitedgeError as error:
            if target != "rknn" or "toolchain" not in str(error):
                raise
            pytest.skip(str(error))
        agreement = metrics.agreement(source[few], found)
        lost = float((source[few].argmax(1) == labels[few]).mean() - (found.argmax(1) == labels[few]).mean())
        print(f"{make.__name__}, {target}: source {top1:.3f}, lost {lost:.3f}, agreement {agreement:.3f}")
        assert agreement >= 0.95, target
        assert lost <= (0.02 if target != "rknn" else 1.5 / SIMULATED), target
