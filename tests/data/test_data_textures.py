"""The drawn images that stand in for calibration images: the same each time, and with photographs' statistics."""

from __future__ import annotations

import numpy as np
import pytest

from vitedge.data.folder import open_dataset
from vitedge.data.textures import draw_textures


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    dataset = draw_textures(24, seed=1, side=128)
    return np.stack([np.asarray(dataset.open(index)) for index in range(24)])


def test_an_image_is_the_same_for_every_number_of_them(pixels: np.ndarray) -> None:
    few = draw_textures(3, seed=1, side=128)
    assert (np.asarray(few.open(2)) == pixels[2]).all()
    assert (np.asarray(draw_textures(3, seed=2, side=128).open(2)) != pixels[2]).any()
    assert pixels.shape == (24, 128, 128, 3)


def test_statistics_of_photographs(pixels: np.ndarray) -> None:
    """ImageNet: mean 0.45, deviation in an image 0.22, and a spectrum that falls with about 1/f^2 in power."""
    grey = pixels.astype(np.float64).mean(-1) / 255
    assert 0.35 < grey.mean() < 0.6 and 0.1 < grey.std((1, 2)).mean() < 0.3
    power = (np.abs(np.fft.fft2(grey - grey.mean((1, 2), keepdims=True))) ** 2).mean(0)
    radius = np.hypot(*np.meshgrid(*[np.fft.fftfreq(128) * 128] * 2))
    rings = np.array([power[(radius >= r) & (radius < r + 1)].mean() for r in range(2, 60)])
    slope = np.polyfit(np.log(np.arange(2, 60) + 0.5), np.log(rings), 1)[0]
    assert -3 < slope < -1.3


def test_a_run_opens_the_set_again() -> None:
    dataset = draw_textures(5, seed=3, side=64)
    again = open_dataset(dataset.origin)
    assert again.files == dataset.files and again.sha256() == dataset.sha256() and again.labels is None
    assert draw_textures(5, seed=4, side=64).sha256() != dataset.sha256() != draw_textures(6, 3, 64).sha256()
    assert (np.asarray(again.open(4)) == np.asarray(dataset.open(4))).all()
    assert (np.asarray(again.subset([4]).open(0)) == np.asarray(dataset.open(4))).all()
