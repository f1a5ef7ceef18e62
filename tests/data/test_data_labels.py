"""labels.csv in the dialects that people have."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vitedge.data.folder import open_dataset
from vitedge.errors import VitedgeError

ROWS = (("images/a.png", 1), ("images/b.png", 0), ("c.png", 2))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for file, label in ROWS:
        (tmp_path / "set" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (label, 0, 0)).save(tmp_path / "set" / file)
    return tmp_path / "set"


def rows(form: str) -> str:
    return "".join(form.format(file=file, label=label, name=file.rpartition("/")[2][:-4]) for file, label in ROWS)


@pytest.mark.parametrize(
    "text",
    [
        "File,LABEL\r\n" + rows("{file},{label}\r\n"),
        "file;label\n" + rows("{file};{label}\n"),
        "file\tlabel\n" + rows("{file}\t{label}\n"),
        "file|label\n" + rows("{file}|{label}\n"),
        "Filename,Class\n" + rows("{file},{label}\n"),
        "image,category,split\n" + rows("{file},{label},train\n"),
        "id,target,image_path\n" + rows("7,{label},{file}\n"),
        "img;class_id\n" + rows("{file};{label}\n"),
        "image_id,label\n" + rows("{name},{label}\n"),
        "file,label\n" + rows(".\\{file},{label}\n").replace("/", "\\"),
        "file,label\n" + rows("./{file},{label}\n"),
        "file,label\n" + rows("set/{file},{label}\n"),
        "file,label\n" + rows("data/set/{file},{label}\n"),
        "file,label\n\n" + rows('"{file}", {label}\n\n'),
        "file,class names,classes\n" + rows("{file},,{label}\n"),
        rows("{file},{label}\n"),
    ],
)
def test_dialects(root: Path, text: str) -> None:
    (root / "labels.csv").write_bytes(text.encode())
    dataset = open_dataset(root, class_count=3)
    assert dataset.files == tuple(file for file, _ in ROWS)
    assert dataset.labels.tolist() == [label for _, label in ROWS]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_byte_order_marks(root: Path, encoding: str) -> None:
    (root / "labels.csv").write_bytes(("file\tlabel\n" + rows("{file}\t{label}\n")).encode(encoding))
    assert open_dataset(root, class_count=3).labels.tolist() == [1, 0, 2]


def test_absolute_paths_into_the_folder(root: Path) -> None:
    (root / "labels.csv").write_text("file,label\n" + "".join(f"{root / file},{label}\n" for file, label in ROWS))
    assert open_dataset(root, class_count=3).files == tuple(file for file, _ in ROWS)


@pytest.mark.parametrize("name", ["../secret.png", "images/../../secret.png", "{absolute}", "set/../../secret.png"])
def test_paths_out_of_the_folder_are_refused(root: Path, name: str) -> None:
    secret = root.parent / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    (root / "labels.csv").write_text(f"file,label\n{name.format(absolute=secret)},0\n")
    with pytest.raises(VitedgeError, match=r"files that do not exist.*lead to images in it"):
        open_dataset(root, class_count=3)


def test_a_name_that_two_images_have_is_not_guessed(root: Path) -> None:
    Image.new("RGB", (8, 8)).save(root / "a.jpg")
    (root / "labels.csv").write_text("image_id,label\na,0\n")
    with pytest.raises(VitedgeError, match="1 in all: a"):
        open_dataset(root, class_count=3)


def test_several_labels_with_bars(root: Path) -> None:
    (root / "labels.csv").write_text("image,tags\nimages/a.png,0|2\nimages/b.png,1\nc.png,\n")
    assert open_dataset(root, class_count=3).labels.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_control_characters_do_not_reach_the_terminal(root: Path) -> None:
    (root / "labels.csv").write_text("file,label\n\x1b[31mred.png,0\n")
    with pytest.raises(VitedgeError) as caught:
        open_dataset(root, class_count=3)
    assert "\x1b" not in caught.value.why and "\\x1b" in caught.value.why


def test_no_regular_file_is_no_labels_csv(root: Path) -> None:
    (root / "labels.csv").symlink_to("/dev/zero")
    assert open_dataset(root).labels is None
