"""What the commands say of the images and labels that they are given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import vitedge


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, shapes_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    vitedge(folder, "compress", "--model", tiny_folder, "--calib", shapes_folder, "--quantize", "none")
    vitedge(folder, "build", "--precision", "fp32")
    return folder


def test_one_broken_image_among_ten_is_a_row_with_an_error(run: Path, shapes_folder: Path, tmp_path: Path) -> None:
    files = []
    for number, image in enumerate(sorted((shapes_folder / "images").iterdir())[:10]):
        files.append(tmp_path / f"{number}.png")
        shutil.copy(image, files[-1])
    files[3].write_bytes(b"\0\0\0\x18ftypheic")
    answer = json.loads(vitedge(run, "predict", "--json", *files).stdout)
    rows = answer["images"]
    assert [row["file"] for row in rows] == list(map(str, files))
    assert ["error" in row for row in rows] == [number == 3 for number in range(10)]
    assert "HEIC" in rows[3]["error"] and len(rows[4]["top"]) == 5
    done = vitedge(run, "predict", *files)
    assert "error: it is a HEIC image" in done.stdout and "9 images" in done.stderr
    assert "No image could be read" in vitedge(run, "predict", files[3], code=2).stderr


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--calib", "missing"], "no calibration folder 'missing'"),
        (["--calib", "heic", "--prune", "0.3"], "HEIC images"),
    ],
)
def test_calibration_images_are_looked_for_before_weights_are_read(tmp_path: Path, flags: list[str], told: str) -> None:
    (tmp_path / "heic").mkdir()
    (tmp_path / "heic" / "1.heic").write_bytes(b"")
    done = vitedge(tmp_path, "compress", "--model", "no/such/model", *flags, code=2)
    assert told in done.stderr and "reading" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["heic"]


def test_how_labels_were_read_is_said(run: Path, shapes_folder: Path, tmp_path: Path) -> None:
    labels = dict(line.split(",") for line in (shapes_folder / "labels.csv").read_text().splitlines()[1:])
    rows = "".join(f"{file};{int(label) + 1}\n" for file, label in labels.items())
    shutil.copytree(shapes_folder / "images", tmp_path / "set" / "images")
    (tmp_path / "set" / "labels.csv").write_text("File;Class\n" + rows)
    done = vitedge(run, "bench", "--data", tmp_path / "set", "--seconds", "0.05", "--launches", "1")
    assert "warning" in done.stderr and "counted from 1" in done.stderr


def test_bench_refuses_folders_of_other_classes(run: Path, tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / "set" / f"kind{number}").mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / "set" / f"kind{number}" / "x.png")
    done = vitedge(run, "bench", "--data", tmp_path / "set", "--seconds", "0.05", "--launches", "1", code=2)
    assert "kind0" in done.stderr and "disc" in done.stderr
