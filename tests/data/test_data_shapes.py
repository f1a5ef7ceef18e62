from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitedge.data.folder import open_dataset
from vitedge.data.image import open_rgb
from vitedge.data.shape_drawing import FIGURES, TEXTURES
from vitedge.data.shapes import SHAPES, draw_shapes, write_shapes
from vitedge.errors import VitedgeError


def test_the_same_seed_draws_the_same() -> None:
    pixels, labels = draw_shapes(25, seed=3, size=32)
    again, _ = draw_shapes(12, seed=3, size=32)
    assert pixels.shape == (25, 32, 32, 3) and pixels.dtype == np.uint8
    assert labels.tolist() == [index % 10 for index in range(25)]
    np.testing.assert_array_equal(pixels[:12], again)


def test_seeds_splits_and_images_differ() -> None:
    drawn = [draw_shapes(20, seed, 32, split)[0] for seed in (0, 1) for split in ("train", "val", "test", "calib")]
    images = {image.tobytes() for pixels in drawn for image in pixels}
    assert len(images) == 8 * 20


def test_figures_have_their_areas() -> None:
    """Each figure's area in units of its radius, against its formula."""
    y, x = np.mgrid[-1.25:1.25:1000j, -1.25:1.25:1000j]
    half, r = np.sqrt(1 - 0.28**2), 0.45
    expected = {
        "disc": np.pi * 0.9**2,
        "ring": np.pi * (0.95**2 - 0.55**2),
        "square": 1.56**2,
        "triangle": 3 * np.sqrt(3) * 0.55**2,
        "star": 10 * 0.5 * 1.1 * r * np.sin(np.pi / 5),
        "cross": 4 * 0.95 * 2 * 0.28 - (2 * 0.28) ** 2,
    }
    assert half < 1
    for figure in FIGURES[:-1]:
        area = (figure(x, y) < 0).mean() * 2.5**2
        assert area == pytest.approx(expected[figure.__name__], rel=0.01), figure.__name__


def test_textures_have_their_shares() -> None:
    y, x = np.mgrid[0:4:800j, 0:4:800j]
    shares = {texture.__name__: (texture(x, y) < 0).mean() for texture in TEXTURES}
    assert shares == pytest.approx({"stripes": 0.5, "checkers": 0.5, "dots": np.pi * 0.09}, rel=0.03)


def test_a_linear_model_does_not_learn_them() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    pixels, labels = draw_shapes(1000, 0, 32)
    tests, truth = draw_shapes(400, 0, 32, "test")
    model = linear.RidgeClassifier(3e7).fit(pixels.reshape(1000, -1) / 1.0, labels)
    assert model.score(tests.reshape(400, -1) / 1.0, truth) < 0.65


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_written_set_is_a_data_set(tmp_path: Path, suffix: str) -> None:
    folder = write_shapes(tmp_path / "shapes", 12, seed=1, size=32, split="val", suffix=suffix)
    dataset = open_dataset(folder)
    pixels, labels = draw_shapes(12, 1, 32, "val")
    assert dataset.classes == SHAPES and dataset.labels.tolist() == labels.tolist()
    for index in range(12):
        found = np.asarray(open_rgb(dataset.path(index))).astype(int)
        assert np.abs(found - pixels[index]).mean() < (1e-9 if suffix == "png" else 8)


def test_writing_again_replaces_but_never_takes_other_files(tmp_path: Path) -> None:
    write_shapes(tmp_path / "shapes", 12)
    assert len(open_dataset(write_shapes(tmp_path / "shapes", 5))) == 5
    assert len(list((tmp_path / "shapes" / "images").iterdir())) == 5
    (tmp_path / "shapes" / "precious.txt").write_text("")
    with pytest.raises(VitedgeError, match="other files"):
        write_shapes(tmp_path / "shapes", 5)
    assert (tmp_path / "shapes" / "precious.txt").exists()


@pytest.mark.parametrize("wrong", [{"n": 0}, {"size": 8}, {"split": "dev"}])
def test_wrong_wishes(wrong: dict) -> None:
    with pytest.raises(VitedgeError):
        draw_shapes(**({"n": 1} | wrong))


def test_the_shipped_calibration_set_is_small_and_whole(repository: Path) -> None:
    folder = repository / "calib" / "shapes"
    dataset = open_dataset(folder)
    assert dataset.classes == SHAPES and len(dataset) == 128
    assert np.bincount(dataset.labels).min() >= 12
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 1_000_000
    pixels, labels = draw_shapes(128, 0, 48, "calib")
    assert dataset.labels.tolist() == labels.tolist()
    with Image.open(dataset.path(7)) as image:
        assert np.abs(np.asarray(image).astype(int) - pixels[7]).mean() < 8
