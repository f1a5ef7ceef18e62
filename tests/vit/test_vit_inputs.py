"""Images that are not square, and of other than three channels: prepared as the libraries do it, and all the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitedge
from tests.vit.test_checkpoint_sources import shaken
from tests.vit.variants import PLAIN, make
from vitedge.data.preprocess import Preprocess
from vitedge.data.preprocess_sources import from_huggingface, from_timm
from vitedge.data.shapes import SHAPES
from vitedge.errors import VitedgeError
from vitedge.train.finetune import fine_tune
from vitedge.train.options import AugmentOptions, FineTuneOptions, LoopOptions
from vitedge.vit.checkpoint import load_model, save_model

SIZES = [(311, 402), (402, 311), (96, 500), (500, 96), (64, 40)]


def image(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_pct", [1.0, 0.9])
def test_timms_oblong_crops(size: tuple[int, int], crop_pct: float) -> None:
    data = pytest.importorskip("timm.data")
    config = {"input_size": [3, 48, 80], "crop_pct": crop_pct, "mean": [0.5] * 3, "std": [0.5] * 3}
    theirs = data.create_transform(**data.resolve_data_config(config, pretrained_cfg=config))
    ours = from_timm(config)
    assert ours.size == (48, 80)
    found = ours.normalize(ours.apply(image(*size))[None])[0]
    np.testing.assert_allclose(found, theirs(image(*size)).numpy(), atol=1e-6)


def test_hugging_faces_oblong_sizes() -> None:
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
    theirs = kind(size={"height": 48, "width": 80})
    ours = from_huggingface(json.loads(theirs.to_json_string()))
    found = ours.normalize(ours.apply(image(311, 402))[None])[0]
    np.testing.assert_allclose(found, np.asarray(theirs(image(311, 402))["pixel_values"][0]), atol=1e-5)


def test_it_is_saved_and_scaled() -> None:
    oblong = Preprocess((50, 80), (48, 80), mean=(0.5,) * 3, std=(0.25,) * 3)
    assert Preprocess.from_dict(json.loads(json.dumps(oblong.to_dict()))) == oblong
    assert oblong.with_image_size((96, 160)) == replace(oblong, resize=(100, 160), crop=(96, 160))
    assert Preprocess((32, 32), (32, 32)) == Preprocess(32, 32) and Preprocess(32, 32).to_dict()["crop"] == 32
    assert oblong.with_bands(4).mean == (0.5,) * 4
    with pytest.raises(VitedgeError, match="at least crop"):
        Preprocess((40, 90), (48, 80))
    with pytest.raises(VitedgeError, match="2 numbers"):
        Preprocess(32, 32).with_bands(2)
    with pytest.raises(ValueError, match="no 4 channels"):
        oblong.with_bands(4).apply(image(64, 64))


def test_a_timm_folder_of_an_oblong_grey_model(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    options = {"img_size": (48, 80), "in_chans": 1, "num_classes": 5, "depth": 2}
    config = {"input_size": (1, 48, 80), "mean": (0.4,), "std": (0.2,), "num_classes": 5}
    model = shaken(timm.create_model("vit_tiny_patch16_224", pretrained_cfg_overlay=config, **options))
    timm.models.save_for_hf(model, tmp_path, model_config={"num_classes": 5}, model_args=options)
    loaded = load_model(str(tmp_path))
    assert loaded.model.config.grid == (3, 5)
    assert loaded.preprocess.size == (48, 80) and loaded.preprocess.mean == (0.4,) * 3
    assert loaded.preprocess.channels == "grey"  # read as three equal channels, exactly
    x = torch.randn(2, 1, 48, 80, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.allclose(loaded.model(x.expand(-1, 3, -1, -1)), model(x), atol=1e-3)


def test_an_oblong_grey_model_the_whole_way(tmp_path: Path, shapes_folder: Path) -> None:
    """Trained, pruned with merged tokens, quantised, built, measured, classified with, reported."""
    config = replace(PLAIN, image_size=(24, 40), classes=len(SHAPES))
    grey = Preprocess((24, 40), (24, 40), mean=(0.5,), std=(0.5,), channels="grey")
    loop = LoopOptions(epochs=1, batch=16, precision="fp32", evaluations=1)
    fine = FineTuneOptions(tracker="none", head_epochs=0)
    fine_tune(make(config), grey, shapes_folder, tmp_path / "trained", fine, loop, AugmentOptions())
    calib = {"calib": str(shapes_folder), "calib_size": 24}
    small = {"align": 4, "head_align": 4, "min_hidden": 8, "fit_steps": 2}
    run = vitedge.compress(tmp_path / "trained", run=tmp_path / "run", prune=0.1, quantize="static", **calib, **small)
    assert np.load(run.root / "calib/pixels.npy", mmap_mode="r").shape == (24, 24, 40, 3)
    for precision in ("fp32", "int8"):
        built = run.build("onnxruntime", precision=precision, attention="parts", mlp_groups="apart")
        assert built.facts["check"]["sqnr_db"] is None or built.facts["check"]["sqnr_db"] > 8
    rows = run.bench(shapes_folder, launches=1, seconds=0.05).rows
    assert all(row.ok for row in rows) and rows[0].top1 is not None
    assert len(run.predict(shapes_folder)[0].top) == 5
    assert 'id="attention"' in run.report().read_text()


def test_other_channels_without_image_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five channels: a graph, an artifact and its latency; no images can be given."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model", make(replace(PLAIN, channels=5)))
    Preprocess(32, 32, mean=(0.5,) * 5, std=(0.5,) * 5).save(tmp_path / "model/preprocess.json")
    run = vitedge.compress(tmp_path / "model", run=tmp_path / "run", condition=False)
    run.build("onnxruntime", precision="fp32", attention="parts", mlp_groups="apart")
    assert run.bench(launches=1, seconds=0.05).row("onnxruntime-fp32").ok
