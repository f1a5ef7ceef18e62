"""Which class a sub-folder or a label means: matched by name, read aloud, or refused; never scored by position."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitedge.data.classes import class_indices, natural_key
from vitedge.data.folder import open_dataset
from vitedge.errors import VitedgeError


def draw(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)
    return root


def folders(root: Path, *names: str) -> Path:
    return draw(root, *(f"{name}/a.png" for name in names))


def labels(root: Path, text: str, *files: str) -> Path:
    draw(root, *(files or ("a.png", "b.png", "c.png")))
    (root / "labels.csv").write_text(text)
    return root


def by_folder(dataset) -> dict[str, int]:
    return {file.rpartition("/")[0]: int(label) for file, label in zip(dataset.files, dataset.labels, strict=True)}


def test_numeric_folders_are_indices_not_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders(tmp_path, *map(str, range(12)))
    expected = {str(number): number for number in range(12)}
    assert by_folder(open_dataset(tmp_path, class_count=12)) == expected
    assert "class indices: 0, 1, 2" in caplog.text
    assert by_folder(open_dataset(tmp_path, classes=[f"name{i}" for i in range(12)])) == expected
    trained = open_dataset(tmp_path)
    assert by_folder(trained) == expected and trained.classes == tuple(map(str, range(12)))


def test_some_numeric_folders_of_many_classes(tmp_path: Path) -> None:
    folders(tmp_path, "3", "0007", "11")
    assert by_folder(open_dataset(tmp_path, class_count=12)) == {"3": 3, "0007": 7, "11": 11}
    with pytest.raises(VitedgeError, match=r"not among the known|do not fit"):
        open_dataset(tmp_path, class_count=11)


def test_folders_from_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders(tmp_path, *map(str, range(1, 13)))
    assert by_folder(open_dataset(tmp_path, class_count=12)) == {str(n): n - 1 for n in range(1, 13)}
    assert "counted from 1" in caplog.text


def test_folders_that_are_class_names_although_they_are_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders(tmp_path, "1", "2")
    assert by_folder(open_dataset(tmp_path, classes=["2", "3", "1"])) == {"1": 2, "2": 0}
    assert "read as class names, not as indices" in caplog.text


@pytest.mark.parametrize("name", ["tench", "Tench", "Tinca tinca", "tinca_tinca", "TENCH, tinca tinca", " tench"])
def test_a_synonym_or_another_spelling_is_the_class(tmp_path: Path, name: str) -> None:
    folders(tmp_path, name, "goldfish")
    classes = ["goldfish, Carassius auratus", "tench, Tinca tinca", "great white shark, white shark"]
    assert by_folder(open_dataset(tmp_path, classes=classes)) == {name: 1, "goldfish": 0}


def test_a_name_of_two_classes_is_asked_about(tmp_path: Path) -> None:
    folders(tmp_path, "crane", "dog")
    with pytest.raises(VitedgeError, match="not among the class names: crane"):
        open_dataset(tmp_path, classes=["crane, bird", "crane, machine", "dog"])


def test_hyphen_and_underscore_are_spaces(tmp_path: Path) -> None:
    folders(tmp_path, "great_white-shark", "tiger_shark")
    assert by_folder(open_dataset(tmp_path, classes=["Tiger shark", "great white shark"])) == {
        "great_white-shark": 1,
        "tiger_shark": 0,
    }


def test_no_name_in_common_is_refused_and_both_are_shown(tmp_path: Path) -> None:
    folders(tmp_path, "daisy", "rose")
    with pytest.raises(VitedgeError) as caught:
        open_dataset(tmp_path, classes=["cat", "dog"])
    assert "daisy, rose" in caught.value.why and "cat, dog" in caught.value.why


def test_synset_folders_by_the_names_of_the_classes(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    folders(tmp_path, "n01443537", "n01440764")
    classes = ["goldfish", "dog", "tench"]
    assert by_folder(open_dataset(tmp_path, classes=classes)) == {"n01440764": 2, "n01443537": 0}


def test_synset_folders_of_a_model_of_imagenet_without_names(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    # Two classes are called "crane": the bird is class 134, the machine 517.
    folders(tmp_path, "n02012849", "n03126707")
    assert by_folder(open_dataset(tmp_path, class_count=1000)) == {"n02012849": 134, "n03126707": 517}


def test_synset_folders_by_a_list_beside_them(tmp_path: Path) -> None:
    folders(tmp_path / "val", "n00000002", "n00000001")
    (tmp_path / "LOC_synset_mapping.txt").write_text("n00000001 first thing, one\nn00000002 second thing\n")
    found = open_dataset(tmp_path / "val", classes=["second thing", "one"])
    assert by_folder(found) == {"n00000001": 1, "n00000002": 0}


def test_unknown_synsets_are_refused(tmp_path: Path) -> None:
    folders(tmp_path, "n99999998", "n99999999")
    with pytest.raises(VitedgeError, match=r"not among the known|do not fit"):
        open_dataset(tmp_path, classes=["cat", "dog"])


@pytest.mark.parametrize("names", [("train", "val"), ("Training", "validation"), ("train", "valid", "test")])
def test_parts_are_no_classes(tmp_path: Path, names: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    for number, name in enumerate(names):
        draw(tmp_path, *(f"{name}/{kind}/{number}.png" for kind in ("cat", "dog")))
    dataset = open_dataset(tmp_path, classes=["dog", "cat"])
    assert dataset.root == tmp_path / names[1]
    assert by_folder(dataset) == {"cat": 1, "dog": 0}
    assert "val is taken" in caplog.text
    assert open_dataset(tmp_path, part="train").root == tmp_path / names[0]


def test_only_one_part_is_taken_for_the_other(tmp_path: Path) -> None:
    draw(tmp_path, "train/cat/a.png", "train/dog/b.png")
    assert open_dataset(tmp_path).root == tmp_path / "train"


def test_classes_that_are_called_train_and_val(tmp_path: Path) -> None:
    folders(tmp_path, "train", "val")
    assert by_folder(open_dataset(tmp_path, classes=["val", "train"])) == {"train": 1, "val": 0}
    folders(tmp_path, "bus")
    assert by_folder(open_dataset(tmp_path)) == {"bus": 0, "train": 1, "val": 2}


def test_class_names_above_the_parts(tmp_path: Path) -> None:
    draw(tmp_path, "train/b/1.png", "train/a/2.png", "val/a/3.png", "val/b/4.png")
    (tmp_path / "classes.txt").write_text("b\na\n")
    assert open_dataset(tmp_path).classes == ("b", "a")


def test_labels_that_are_names_before_they_are_indices(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels(tmp_path, "file,label\na.png,1\nb.png,2\nc.png,1\n")
    assert open_dataset(tmp_path, classes=["1", "2", "3"]).labels.tolist() == [0, 1, 0]
    assert "read as class names, not as indices" in caplog.text


def test_indices_although_some_are_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels(tmp_path, "file,label\na.png,0\nb.png,2\nc.png,1\n")
    assert open_dataset(tmp_path, classes=["1", "2", "3"]).labels.tolist() == [0, 2, 1]
    assert "read as indices" in caplog.text


def test_labels_from_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels(tmp_path, "file,label\na.png,1\nb.png,3\nc.png,2\n")
    assert open_dataset(tmp_path, classes=["cat", "dog", "bird"]).labels.tolist() == [0, 2, 1]
    assert "counted from 1" in caplog.text
    with pytest.raises(VitedgeError, match="subtract 1"):
        labels(tmp_path, "file,label\na.png,2\nb.png,3\n")
        open_dataset(tmp_path, class_count=3)


def test_all_but_the_first_label_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels(tmp_path, "file,label\na.png,1\nb.png,3\nc.png,2\n")
    assert open_dataset(tmp_path, class_count=4).labels.tolist() == [1, 3, 2]
    assert "no label is 0" in caplog.text


def test_labels_by_synonym(tmp_path: Path) -> None:
    labels(tmp_path, "file,label\na.png,tench\nb.png,Carassius auratus\n")
    classes = ["goldfish, Carassius auratus", "tench, Tinca tinca"]
    assert open_dataset(tmp_path, classes=classes).labels.tolist() == [1, 0]


def test_indices_mean_the_names_beside_them(tmp_path: Path) -> None:
    labels(tmp_path, "file,label\na.png,0\nb.png,1\n")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    dataset = open_dataset(tmp_path, classes=["bird", "cat", "dog"])
    assert dataset.labels.tolist() == [2, 1] and dataset.classes == ("bird", "cat", "dog")
    with pytest.raises(VitedgeError, match=r"dog, cat\. Known classes: bird, fish"):
        open_dataset(tmp_path, classes=["bird", "fish"])
    with pytest.raises(VitedgeError, match="other classes than the model"):
        open_dataset(tmp_path, class_count=3)


def test_several_labels_mean_the_names_beside_them(tmp_path: Path) -> None:
    labels(tmp_path, "file,labels\na.png,0;1\nb.png,\nc.png,cat\n")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    hot = open_dataset(tmp_path, classes=["cat", "bird", "dog"]).labels
    assert hot.tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_natural_order() -> None:
    names = ["b10", "a2", "B9", "a10", "", "10", "9", "a"]
    assert sorted(names, key=natural_key) == ["", "9", "10", "a", "a2", "a10", "B9", "b10"]


def test_meanings_of_nothing_and_of_long_numbers() -> None:
    assert class_indices([], ["a"], 1) == ({}, [])
    found, _ = class_indices(["9" * 5000], ["a"], 1)
    assert isinstance(next(iter(found.values())), str)
    assert np.iinfo(np.int64).max > 10**18
