from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitedge.data.image import UnreadableImage, is_image, open_rgb

GRADIENT = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (32, 1))  # [32, 64]


def rgb(path: Path) -> np.ndarray:
    image = open_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_grey_and_one_bit(tmp_path: Path) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / "grey.png")
    assert (rgb(tmp_path / "grey.png") == GRADIENT[..., None]).all()
    Image.fromarray(GRADIENT > 100).save(tmp_path / "bit.png")
    assert (rgb(tmp_path / "bit.png")[..., 0] == 255 * (GRADIENT > 100)).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(GRADIENT.astype(np.uint16) * 257).save(path)
    assert (rgb(path) == GRADIENT[..., None]).all()


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "ink.jpg", quality=95)
    assert np.abs(rgb(tmp_path / "ink.jpg").astype(int) - [255, 0, 0]).max() < 6


def test_palette_and_alpha_lose_their_transparency(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=b"\xff\x80")
    assert (rgb(tmp_path / "palette.png") == [10, 20, 30]).all()
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "alpha.png")
    assert (rgb(tmp_path / "alpha.png") == [10, 20, 30]).all()
    Image.new("LA", (8, 8), (10, 128)).save(tmp_path / "grey_alpha.png")
    assert (rgb(tmp_path / "grey_alpha.png") == 10).all()
    assert not recwarn.list


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(GRADIENT).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    turned = rgb(tmp_path / "turned.jpg")
    assert turned.shape == (64, 32, 3)
    assert turned[0, :, 0].mean() < 10 and turned[-1, :, 0].mean() > 240


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_cost_the_image(tmp_path: Path) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / "exif.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert rgb(tmp_path / "exif.jpg").shape == (32, 64, 3)


def test_unreadable_files(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole)
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    Image.fromarray(GRADIENT.astype(np.float32)).save(tmp_path / "float.tif")
    reasons = {
        "half.jpg": "truncated",
        "empty.jpg": "empty",
        "text.jpg": "no image",
        "float.tif": "floating",
        "none.jpg": "No such",
    }
    for name, reason in reasons.items():
        path = tmp_path / name
        with pytest.raises(UnreadableImage, match=reason) as caught:
            open_rgb(path)
        assert caught.value.path == str(path)


def test_image_names() -> None:
    assert is_image(Path("a/B.JPG")) and is_image(Path("x.webp"))
    assert not is_image(Path("._B.jpg")) and not is_image(Path("labels.csv"))
