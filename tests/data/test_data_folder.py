from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitedge.data.classes import read_classes
from vitedge.data.folder import open_dataset, open_images
from vitedge.errors import VitedgeError


def draw(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / name)


def labelled(root: Path, text: str) -> Path:
    draw(root, "a.png", "b.png", "sub/c.png")
    (root / "labels.csv").write_text(text, encoding="utf-8")
    return root


def test_labels_csv(tmp_path: Path) -> None:
    dataset = open_dataset(labelled(tmp_path, "file,label\nb.png,2\nsub/c.png,0\na.png,2\n"))
    assert dataset.files == ("b.png", "sub/c.png", "a.png")
    assert dataset.labels.tolist() == [2, 0, 2] and dataset.labels.dtype == np.int64
    assert dataset.classes is None and not dataset.multi_label
    assert dataset.path(1) == tmp_path / "sub" / "c.png"


def test_labels_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    dataset = open_dataset(labelled(tmp_path, '\ufeffid,label,file\r\n7, "1",a.png\r\n8,0,"b.png"\r\n'))
    assert dataset.files == ("a.png", "b.png") and dataset.labels.tolist() == [1, 0]


def test_labels_by_name(tmp_path: Path) -> None:
    labelled(tmp_path, 'file,label\na.png,"crane, bird"\nb.png,0\nsub/c.png, dog\n')
    (tmp_path / "classes.txt").write_text("cat\ncrane, bird\ndog\n")
    dataset = open_dataset(tmp_path)
    assert dataset.labels.tolist() == [1, 0, 2] and dataset.classes == ("cat", "crane, bird", "dog")
    # The model's names come before those of the folder, whose indices mean the folder's own names.
    given = open_dataset(tmp_path, classes=["dog", "cat", "crane, bird"])
    assert given.labels.tolist() == [2, 1, 0] and given.classes == ("dog", "cat", "crane, bird")


def test_several_labels(tmp_path: Path) -> None:
    labelled(tmp_path, "file,labels\na.png,2;cat\nb.png,\nsub/c.png,1\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\nbird\n")
    dataset = open_dataset(tmp_path)
    assert dataset.multi_label and dataset.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "columns"),
        ("file,label\n", "no rows"),
        ("file;name\na.png;1\n", "columns: file, name"),
        ("file,label\na.png,1,cat\n", "more columns than its header"),
        ("name,label\na.png,1\n", "name, label"),
        ("file,label\nx.png,1\na.png,0\ny/z.png,1\n", "2 in all: x.png; y/z.png"),
        ("file,label\n,1\n", "no name"),
        ("file,label\na.png,1\nb.png,1\n./a.png,0\n", "twice.*1 in all: a.png"),
        ("file,label\na.png,-1\n", "a.png: '-1' is out of range"),
        ("file,label\na.png,3\n", "'3' is out of range.*from 0 to 2"),
        ("file,label\na.png,1.0\n", "'1.0' is neither"),
        ("file,label\na.png\n", "'' is neither"),
        ("file,label\na.png,--1\n", "'--1' is neither"),
        ("file,label\na.png,horse\n", "'horse' is neither"),
        ("file,labels\na.png,1;7\n", "'1;7' is out of range"),
    ],
)
def test_wrong_labels_are_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(VitedgeError, match=told) as caught:
        open_dataset(labelled(tmp_path, text), classes=["cat", "dog", "bird"])
    assert caught.value.exit_code == 2 and "labels.csv" in caught.value.what and caught.value.todo


def test_labels_out_of_range_where_only_the_count_is_known(tmp_path: Path) -> None:
    labelled(tmp_path, "file,label\na.png,2\n")
    assert open_dataset(tmp_path, class_count=3).labels.tolist() == [2]
    with pytest.raises(VitedgeError, match="out of range"):
        open_dataset(tmp_path, class_count=2)


def test_a_name_that_two_classes_have_is_no_label(tmp_path: Path) -> None:
    with pytest.raises(VitedgeError, match="several classes"):
        open_dataset(labelled(tmp_path, "file,label\na.png,crane\n"), classes=["crane", "dog", "crane"])


def test_binary_labels_csv(tmp_path: Path) -> None:
    labelled(tmp_path, "")
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe\x00,1\n")
    with pytest.raises(VitedgeError, match="could not be read"):
        open_dataset(tmp_path)


def test_one_folder_a_class_is_torchvisions_image_folder(tmp_path: Path) -> None:
    draw(tmp_path, "ant/b.png", "ant/deep/a.JPG", "bee/x.png", "cat/y.png", ".hidden/z.png", "cat/._y.png")
    dataset = open_dataset(tmp_path)
    theirs = pytest.importorskip("torchvision.datasets").ImageFolder(tmp_path, allow_empty=True)
    visible = [(p, c) for p, c in theirs.samples if "/." not in p]
    shift = theirs.class_to_idx.get("ant", 0)  # theirs counts the hidden folder too
    assert {str(dataset.path(i)): int(dataset.labels[i]) + shift for i in range(len(dataset))} == dict(visible)
    assert dataset.classes == ("ant", "bee", "cat")


@pytest.mark.parametrize("names", [("class1", "class2", "class10"), ("2", "10", "cat"), ("01", "2", "11")])
def test_sub_folders_are_in_natural_order_as_timm_sorts_them(
    tmp_path: Path, names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    draw(tmp_path, *(f"{name}/a.png" for name in reversed(names)))
    dataset = open_dataset(tmp_path)
    theirs = pytest.importorskip("timm.data").create_dataset("", str(tmp_path)).reader.class_to_idx
    assert {file.partition("/")[0]: label for file, label in zip(dataset.files, dataset.labels, strict=True)} == theirs
    assert dataset.classes == names
    if list(names) != sorted(names):
        assert "natural order: " + ", ".join(names) in caplog.text


def test_folders_by_the_models_names_and_by_their_order(tmp_path: Path) -> None:
    draw(tmp_path, "cat/a.png", "dog/b.png")
    named = open_dataset(tmp_path, classes=["dog", "horse", "cat"])
    assert named.labels.tolist() == [2, 0] and named.classes == ("dog", "horse", "cat")
    with pytest.raises(VitedgeError, match=r"Sub-folders: cat, dog\. Known classes: tench, goldfish"):
        open_dataset(tmp_path, classes=["tench", "goldfish"])
    nameless = open_dataset(tmp_path, classes=["LABEL_0", "LABEL_1"])
    assert nameless.labels.tolist() == [0, 1]
    with pytest.raises(VitedgeError, match="2 sub-folders and 3 classes; not among the class names: dog"):
        open_dataset(tmp_path, classes=["cat", "horse", "bird"])
    with pytest.raises(VitedgeError, match="do not fit"):
        open_dataset(tmp_path, class_count=5)


def test_images_alone(tmp_path: Path) -> None:
    draw(tmp_path, "images/b.png", "images/a.png")
    (tmp_path / "notes.txt").write_text("")
    dataset = open_dataset(tmp_path)
    assert dataset.files == ("images/a.png", "images/b.png") and dataset.labels is None
    with pytest.raises(VitedgeError, match="needs labels"):
        dataset.require_labels("Accuracy", 10)
    draw(tmp_path, "top.png", "more/c.png")
    assert open_dataset(tmp_path).labels is None and len(open_dataset(tmp_path)) == 4


def test_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(VitedgeError, match="no images"):
        open_dataset(tmp_path / "empty")
    with pytest.raises(VitedgeError, match="no such folder"):
        open_dataset(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(VitedgeError, match="It is a file"):
        open_dataset(tmp_path / "file")


def test_open_images(tmp_path: Path) -> None:
    draw(tmp_path, "f/a.png", "f/b.png", "c.png")
    dataset = open_images([tmp_path / "c.png", tmp_path / "f"])
    assert [dataset.path(i).name for i in range(3)] == ["c.png", "a.png", "b.png"]
    assert all(dataset.path(i).is_file() for i in range(3))
    with pytest.raises(VitedgeError, match="does not exist"):
        open_images([tmp_path / "missing.png"])


def test_class_names(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(b"\xef\xbb\xbfcat\r\ngrand piano \r\n\r\n")
    assert read_classes(path) == ("cat", "grand piano")
    for content, told in ((b"", "is empty"), (b"cat\n\ndog\n", "line 2"), (b"\xff", "could not be read")):
        path.write_bytes(content)
        with pytest.raises(VitedgeError, match=told):
            read_classes(path)


def test_labels_must_fit_the_model(tmp_path: Path) -> None:
    dataset = open_dataset(labelled(tmp_path, "file,label\na.png,2\n"))
    assert dataset.require_labels("Accuracy", 3).tolist() == [2]
    with pytest.raises(VitedgeError, match="2 classes, the labels go up to 2"):
        dataset.require_labels("Accuracy", 2)
    (tmp_path / "labels.csv").write_text("file,labels\na.png,1\n")
    several = open_dataset(tmp_path, class_count=3)
    with pytest.raises(VitedgeError, match="do not fit"):
        several.require_labels("Accuracy", 4)


def test_identity_follows_content_only(tmp_path: Path) -> None:
    one, two = (
        labelled(tmp_path / "1", "file,label\na.png,0\n"),
        labelled(tmp_path / "2", "file,label\na.png,0\n"),
    )
    (two / "classes.txt").write_text("cat\ndog\n")
    same = open_dataset(one).sha256()
    assert open_dataset(two).sha256() == same and len(same) == 64
    (two / "labels.csv").write_text("file,label\na.png,1\n")
    assert open_dataset(two).sha256() != same
    content = bytearray((one / "a.png").read_bytes())
    content[-1] ^= 1
    (one / "a.png").write_bytes(content)
    assert open_dataset(one).sha256() != same
    changed = open_dataset(one)
    (one / "a.png").unlink()
    with pytest.raises(VitedgeError, match="could not be read"):
        changed.sha256()


@pytest.mark.real
def test_the_photographs(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "val", classes=read_classes(shared_data / "classes.txt"))
    assert len(dataset) == 500 and dataset.labels[0] == 65
    assert dataset.require_labels("Accuracy", 1000) is dataset.labels
