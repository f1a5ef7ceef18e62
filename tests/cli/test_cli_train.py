"""`vitedge train` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitedge.cli import app
from vitedge.data.preprocess import Preprocess
from vitedge.data.shapes import write_shapes
from vitedge.errors import VitedgeError
from vitedge.train.output import save_folder
from vitedge.vit.config import uniform
from vitedge.vit.model import VisionTransformer, init_weights


@pytest.fixture
def call(tmp_path: Path) -> list[str]:
    config = uniform(image_size=16, patch_size=8, width=16, depth=2, heads=2, hidden=32, classes=7)
    save_folder(tmp_path / "model", init_weights(VisionTransformer(config)), Preprocess(18, 16), None)
    write_shapes(tmp_path / "shapes", 60)
    paths = {"--model": "model", "--data": "shapes", "--out": "out"}
    return ["train", *(word for flag, name in paths.items() for word in (flag, str(tmp_path / name)))]


def test_it_trains_and_says_so(call: list[str], tmp_path: Path) -> None:
    flags = ["--epochs", "1", "--head-epochs", "0.5", "--batch", "8", "--crop-scale", "0.9", "--minutes", "2"]
    result = CliRunner().invoke(app, [*call, *flags, "--json"], catch_exceptions=False)
    figures = json.loads(result.stdout)
    assert figures["part"] == "validation"
    assert figures["images"] == 10
    assert (tmp_path / "out" / "model.safetensors").is_file()
    arch = json.loads((tmp_path / "out" / "arch.json").read_text())
    assert arch["classes"] == 10


@pytest.mark.parametrize(
    ("flags", "word"),
    [(["--lr", "-1"], "--lr"), (["--train", "tail"], "tail"), (["--classes", "none.txt"], "none.txt")],
)
def test_wrong_calls(call: list[str], flags: list[str], word: str) -> None:
    with pytest.raises(VitedgeError, match=word) as caught:
        CliRunner().invoke(app, [*call, *flags], catch_exceptions=False)
    assert caught.value.exit_code == 2
