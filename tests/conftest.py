"""Fixtures and small helpers for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The really trained ViT-Ti/16 and its photographs: VITEDGE_SHARED_DATA or ../shared/data."""
    folder = Path(os.environ.get("VITEDGE_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "val" / "labels.csv").is_file():
        pytest.skip(f"no test data at {folder}: set VITEDGE_SHARED_DATA to the folder with val/ and calib/")
    return folder


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A folder in which no file can be made: root, whom permissions don't stop, gets Linux's /sys."""
    folder = tmp_path / "unwritable"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        folder = Path("/sys")
    if not folder.is_dir():
        pytest.skip("this user writes to every folder")
    return folder


@pytest.fixture
def full_disk() -> Path:
    """A device that refuses every write with ENOSPC."""
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("no /dev/full on this system")
    return device


@pytest.fixture
def float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pruning measures is multiplied in float32, also where the processor has bfloat16."""
    from vitedge.prune import store

    monkeypatch.setattr(store, "fast_bfloat16", lambda: False)


@pytest.fixture(scope="session")
def tiny_config():
    """A ViT of two blocks with 32-pixel images."""
    from vitedge.vit.config import uniform

    return uniform(image_size=32, patch_size=8, width=32, depth=2, heads=2, hidden=64, classes=10)


@pytest.fixture
def tiny_model(tiny_config):
    """That ViT with random weights and, as in real ones, a few outlier channels; new for every test."""
    import torch

    from vitedge.vit.model import VisionTransformer, init_weights

    model = init_weights(VisionTransformer(tiny_config), seed=1).eval()
    with torch.no_grad():
        for block in model.encoder():
            for norm in (block.norm1, block.norm2):
                norm.weight[3] *= 8
                norm.bias[5] = 3.0
        model.pos_embedding[..., 7] += 4
    return model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A model folder, as `--model` takes it, with a ViT of two blocks for the drawn shapes."""
    from vitedge.data.preprocess import Preprocess
    from vitedge.data.shapes import SHAPES
    from vitedge.vit.checkpoint import save_model
    from vitedge.vit.config import uniform
    from vitedge.vit.model import VisionTransformer, init_weights

    folder = tmp_path_factory.mktemp("tiny") / "model"
    config = uniform(image_size=32, patch_size=8, width=32, depth=2, heads=2, hidden=64, classes=len(SHAPES))
    save_model(folder, init_weights(VisionTransformer(config), seed=1).eval())
    Preprocess(resize=32, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3).save(folder / "preprocess.json")
    (folder / "classes.txt").write_text("\n".join(SHAPES) + "\n")
    return folder


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory) -> Path:
    """Forty drawn shapes with labels."""
    from vitedge.data.shapes import write_shapes

    folder = tmp_path_factory.mktemp("shapes") / "set"
    write_shapes(folder, 40, seed=3, size=32, split="test")
    return folder
