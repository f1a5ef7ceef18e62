"""The small ViT of the demo: learns drawn shapes from nothing, and leaves a model folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitedge.data.shapes import SHAPES, write_shapes
from vitedge.train.scratch import train_small_vit
from vitedge.vit.checkpoint import load_model


@pytest.mark.parametrize("parts", [("train", "val", "test"), ("train",)])
def test_it_learns_something_and_writes_a_model_folder(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        write_shapes(tmp_path / "shapes" / part, 250 if part == "train" else 30, split=part)
    write_shapes(tmp_path / "shapes" / "calib", 10, split="calib")  # as the demo has it: neither a part nor a class
    out = tmp_path / "model"
    rows: list[dict] = []
    figures = train_small_vit(tmp_path / "shapes", out, minutes=5, epochs=4, progress=rows.append)
    assert figures["part"] == ("test" if "test" in parts else "validation")
    assert figures["images_seen"] == figures["steps"] * 64
    assert figures["images"] == (30 if "test" in parts else 20)
    # From 2.3, the entropy of ten classes.
    assert rows[-1]["train_loss"] < 2.3
    loaded = load_model(str(out))
    assert loaded.classes == list(SHAPES)
    assert loaded.preprocess.crop == 48 and loaded.model.config.image_size == (48, 48)
    assert json.loads((out / "training.json").read_text())["top1"] == figures["top1"]
