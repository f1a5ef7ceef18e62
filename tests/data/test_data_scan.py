"""Folders that would hang or end a careless reader: links to themselves, pipes, devices, odd names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitedge.data import image as images
from vitedge.data.folder import open_dataset, open_images
from vitedge.data.image import UnreadableImage, open_rgb
from vitedge.errors import VitedgeError


def draw(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)
    return root


def test_a_folder_with_links_to_itself_is_visited_once(tmp_path: Path) -> None:
    draw(tmp_path, "x.png", "sub/y.png")
    for name in ("a", "b", "c", "sub/d"):
        (tmp_path / name).symlink_to(tmp_path)
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "loop").symlink_to("loop")
    assert open_dataset(tmp_path).files == ("sub/y.png", "x.png")
    assert len(open_images([tmp_path])) == 2


def test_a_linked_class_is_found_under_its_real_name(tmp_path: Path) -> None:
    draw(tmp_path / "set", "zebra/1.png", "cat/2.png")
    (tmp_path / "set" / "ant").symlink_to("zebra")
    draw(tmp_path / "else", "3.png")
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "else")
    dataset = open_dataset(tmp_path / "set")
    assert dataset.files == ("cat/2.png", "dog/3.png", "zebra/1.png") and dataset.classes == ("cat", "dog", "zebra")


def test_only_regular_files_are_images(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "folder.png").mkdir()
    assert open_dataset(tmp_path).files == ("a.png",)
    for name in ("pipe.png", "zero.png", "gone.png"):
        with pytest.raises(VitedgeError, match="is no regular file"):
            open_images([tmp_path / name])
        with pytest.raises(UnreadableImage, match=r"no regular file|No such"):
            open_rgb(tmp_path / name)


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    with open(os.fsencode(tmp_path) + b"/\xff\xfe.png", "wb") as file:
        file.write((tmp_path / "a.png").read_bytes())
    with pytest.raises(VitedgeError, match="no Unicode") as caught:
        open_dataset(tmp_path)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("IMG_1.HEIC", "3 HEIC images"),
        ("x.cr2", "raw images of cameras"),
        ("x.npy", "3 NumPy arrays"),
        ("x.tfrecord", "3 files that end in '.tfrecord'"),
    ],
)
def test_what_lies_there_instead_of_images_is_said(tmp_path: Path, name: str, told: str) -> None:
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_bytes(b"\0" * 64)
    with pytest.raises(VitedgeError, match=told) as caught:
        open_dataset(tmp_path)
    assert caught.value.todo


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\0\0\0\x18ftypheic" + b"\0" * 64, "HEIC"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "HTML page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\x93NUMPY\x01\0", "NumPy"),
    ],
)
def test_what_is_saved_under_an_images_name_is_said(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UnreadableImage, match=told):
        open_rgb(tmp_path / "x.jpg")


def test_images_of_too_many_pixels_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(tmp_path / "x.png")
    monkeypatch.setattr(images, "MOST_PIXELS", 1999)
    with pytest.raises(UnreadableImage, match="50 x 40 pixels are more than 1,999"):
        open_rgb(tmp_path / "x.png")


def test_litter_of_archives_is_no_class(tmp_path: Path) -> None:
    draw(tmp_path, "cat/a.png", "dog/b.png", "__MACOSX/cat/a.png", ".ipynb_checkpoints/a.png")
    assert open_dataset(tmp_path).classes == ("cat", "dog")
