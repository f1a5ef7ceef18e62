"""Parquet as Hugging Face writes it, CIFAR's pickles, Flowers-102, the Hub: read right, or refused in one message."""

from __future__ import annotations

import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitedge.data import cifar
from vitedge.data.folder import open_dataset, open_parts
from vitedge.data.image import UnreadableImage
from vitedge.data.loader import iter_batches
from vitedge.data.options import split_columns, with_columns
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError

NAMES = ["plane", "car", "bird"]


def png(red: int, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def red(dataset, index: int) -> int:
    return np.asarray(dataset.open(index))[0, 0, 0].item()


def write(path: Path, columns: dict[str, list], features: dict[str, Any] | None = None, group: int = 4) -> Path:
    """A Parquet file, with Hugging Face's metadata where `features` are given."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def cells(count: int) -> list[dict]:
    return [{"bytes": png(number), "path": f"{number}.png"} for number in range(count)]


FEATURES = {"img": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}


def test_parquet_as_datasets_writes_it(tmp_path: Path) -> None:
    for part, count in (("train", 10), ("test", 5)):
        labels = [number % 3 for number in range(count)]
        write(
            tmp_path / "plain_text" / f"{part}-00000-of-00001.parquet", {"img": cells(count), "label": labels}, FEATURES
        )
    assert set(open_parts(tmp_path)) == {"train", "test"}
    test, train = open_dataset(tmp_path), open_dataset(tmp_path, part="train")
    assert len(test) == 5 and len(train) == 10 and train.classes == tuple(NAMES)
    assert train.labels.tolist() == [0, 1, 2] * 3 + [0]
    assert [red(train, index) for index in (9, 0, 5, 3)] == [9, 0, 5, 3]
    assert open_dataset(train.origin).sha256() == train.sha256() and Path(train.origin.partition("?")[0]) == tmp_path
    part = train.subset([7, 2]).subset([1, 0])
    assert [red(part, 0), red(part, 1)] == [2, 7] and part.labels.tolist() == [2, 1]
    pixels, _ = next(iter(iter_batches(train, Preprocess(8, 8), 10)))
    assert pixels[:, 0, 0, 0].tolist() == list(range(10))
    assert train.sha256() == open_dataset(tmp_path, part="train").sha256() != test.sha256()


def test_parquet_labels_by_the_models_names(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"img": cells(3), "label": [0, 1, 2]}, FEATURES)
    assert open_dataset(path, ["bird", "car", "plane"]).labels.tolist() == [2, 1, 0]
    with pytest.raises(VitedgeError, match=r"plane, car, bird\. Known classes: cat, dog"):
        open_dataset(path, ["cat", "dog"])
    with pytest.raises(VitedgeError, match="names 3 classes"):
        open_dataset(path, class_count=4)


def test_the_beans_layout(tmp_path: Path) -> None:
    """beans has the columns image_file_path, image and labels."""
    names = ["angular_leaf_spot", "bean_rust", "healthy"]
    features = {
        "image_file_path": {"dtype": "string", "_type": "Value"},
        "image": {"_type": "Image"},
        "labels": {"names": names, "_type": "ClassLabel"},
    }
    for part in ("train", "validation", "test"):
        columns = {"image_file_path": ["/x/a.jpg"] * 6, "image": cells(6), "labels": [0, 1, 2] * 2}
        write(tmp_path / "data" / f"{part}-00000-of-00001.parquet", columns, features)
    assert set(open_parts(tmp_path)) == {"train", "val", "test"}
    dataset = open_dataset(tmp_path)
    assert dataset.classes == tuple(names) and dataset.labels.tolist() == [0, 1, 2] * 2


def test_parquet_without_metadata(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"image": [png(0), png(1)], "label": ["dog", "cat"]})
    dataset = open_dataset(path)
    assert dataset.classes == ("cat", "dog") and dataset.labels.tolist() == [1, 0] and red(dataset, 1) == 1
    assert open_dataset(path, ["dog", "horse", "cat"]).labels.tolist() == [0, 2]


def test_several_labels_in_parquet(tmp_path: Path) -> None:
    several = {"feature": {"names": NAMES, "_type": "ClassLabel"}, "_type": "Sequence"}
    features = {"img": {"_type": "Image"}, "tags": several}
    path = write(tmp_path / "x.parquet", {"img": cells(3), "tags": [[0, 2], [], [1]]}, features)
    assert open_dataset(path).labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_a_part_without_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "test.parquet", {"img": cells(2), "label": [-1, -1]}, FEATURES)
    assert open_dataset(path).labels is None


def test_columns_by_name(tmp_path: Path) -> None:
    columns = {"a": cells(2), "b": [{"bytes": png(7), "path": None}] * 2, "x": [0, 1], "y": [1, 0]}
    path = write(tmp_path / "x.parquet", columns)
    with pytest.raises(VitedgeError, match="several image columns"):
        open_dataset(path)
    dataset = open_dataset(with_columns(str(path), "b", "y"), class_count=2)
    assert red(dataset, 0) == 7 and dataset.labels.tolist() == [1, 0]
    assert split_columns(with_columns("a?b.parquet", None, "x")) == ("a?b.parquet", None, "x", None)
    with pytest.raises(VitedgeError, match="no column 'z'"):
        open_dataset(with_columns(str(path), "z", None))


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"text": ["a"], "label": [0]}, r"no column of images.*text \(string\)"),
        ({"image": [png(0)] * 2, "label": [0.0, 1.0]}, "of the kind 'float'.*--label-column"),
        ({"image": [png(0)] * 2, "label": [0, None]}, "of the kind 'NoneType'"),
        ({"image": [png(0)], "label": [3]}, "out of range"),
        ({"image": [], "label": []}, "no column of images|no rows"),
    ],
)
def test_wrong_parquet(tmp_path: Path, columns: dict, told: str) -> None:
    with pytest.raises(VitedgeError, match=told) as caught:
        open_dataset(write(tmp_path / "x.parquet", columns), class_count=3)
    assert caught.value.exit_code == 2 and caught.value.todo


def test_rows_that_do_not_decode_are_unreadable_images(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [
        {"bytes": png(1)[:40], "path": None},
        {"bytes": None, "path": "../secret.png"},
        {"bytes": png(3), "path": None},
    ]
    (tmp_path / "secret.png").write_bytes(png(9))
    path = write(tmp_path / "set" / "x.parquet", {"image": pa.array(rows, kind), "label": [0, 1, 0]})
    dataset = open_dataset(path)
    for index, told in ((0, "no image of a known format"), (1, "holds no image")):
        with pytest.raises(UnreadableImage, match=told):
            dataset.open(index)
    assert red(dataset, 2) == 3 and len(dataset.sha256()) == 64
    batches = iter_batches(dataset, Preprocess(8, 8), 4, most_unreadable=1.0)
    assert len(next(iter(batches))[0]) == 1 and len(batches.unreadable) == 2


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", b"no parquet at all"])
def test_broken_parquet(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(VitedgeError, match="can't be read as Parquet"):
        open_dataset(tmp_path)


def test_parquet_needs_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(VitedgeError, match="pyarrow"):
        open_dataset(tmp_path)


def batches(root: Path, coding: int = 2) -> Path:
    """CIFAR-10 as its archive holds it: two batches of three images."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, first in (("data_batch_1", 0), ("data_batch_2", 3), ("test_batch", 6)):
        data = np.zeros((3, 3, 32, 32), np.uint8)
        data[:, 0] = np.arange(first, first + 3)[:, None, None]
        batch = {"data": data.reshape(3, -1), "labels": [0, 1, 2], "batch_label": name, "filenames": ["x.png"] * 3}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=coding))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES, "num_vis": 3072}, protocol=coding))
    return folder


@pytest.mark.parametrize("coding", [0, 2, 4])
def test_cifars_batches(tmp_path: Path, coding: int) -> None:
    folder = batches(tmp_path, coding)
    for root in (tmp_path, folder):
        train, test = open_dataset(root, part="train"), open_dataset(root)
        assert train.classes == tuple(NAMES) and train.labels.tolist() == [0, 1, 2] * 2 and len(test) == 3
        assert [red(train, index) for index in range(6)] == list(range(6)) and red(test, 2) == 8
    assert open_dataset(tmp_path, ["bird", "plane", "car"], part="train").labels.tolist() == [1, 2, 0] * 2


def test_cifars_batches_are_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = pytest.importorskip("torchvision.datasets")
    folder = batches(tmp_path)
    for number in (3, 4, 5):
        (folder / f"data_batch_{number}").write_bytes((folder / "data_batch_1").read_bytes())
    monkeypatch.setattr(torchvision.cifar, "check_integrity", lambda *_: True)
    for part, train in (("train", True), ("test", False)):
        ours, theirs = open_dataset(tmp_path, part=part), torchvision.CIFAR10(tmp_path, train=train)
        assert len(ours) == len(theirs) and list(ours.classes) == theirs.classes
        for index in range(len(ours)):
            image, label = theirs[index]
            assert label == ours.labels[index] and (np.asarray(image) == np.asarray(ours.open(index))).all()


def test_cifar_100(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        batch = {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1, 0], "coarse_labels": [0, 0]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bear"], "coarse_label_names": ["x"]}))
    assert open_dataset(tmp_path, part="train").labels.tolist() == [1, 0]
    assert open_dataset(tmp_path).classes == ("apple", "bear")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (pickle.dumps(Evil()), "wants to run code"),
        (b"cos\nsystem\n(S'touch ran'\ntR.", r"os\.system"),
        (b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000\ntS'b'\ntR.", "another kind"),
        (pickle.dumps({"data": np.zeros((2, 3072)), "labels": [0, 1]}), "no bytes"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 7]}), "no indices"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}), "no indices"),
        (pickle.dumps([1, 2]), "no entry"),
        (b"", "no batch"),
        (pickle.dumps({"data": b"x"})[:-3], "no batch"),
    ],
)
def test_pickles_that_are_no_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (batches(tmp_path) / "data_batch_1").write_bytes(content)
    with pytest.raises(VitedgeError, match=told):
        open_dataset(tmp_path, part="train")
    assert not (tmp_path / "ran").exists()


def test_pythons_2_bytes(tmp_path: Path) -> None:
    """Arrays of Python 2 hold their bytes as text: protocol 2 of Python 3 writes `_codecs.encode` for them."""
    (tmp_path / "x").write_bytes(pickle.dumps({"data": np.arange(256, dtype=np.uint8)}, protocol=2))
    assert cifar._values(tmp_path / "x", "data").tolist() == list(range(256))


def test_flowers_102_as_torchvision_lays_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scipy = pytest.importorskip("scipy.io")
    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 205):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "jpg" / f"image_{number:05}.jpg", quality=95)
    labels = np.arange(204) % 102 + 1
    scipy.savemat(folder / "imagelabels.mat", {"labels": labels[None]})
    ids = {"trnid": np.arange(1, 103)[None], "valid": np.array([[103, 110]]), "tstid": np.array([[204, 200]])}
    scipy.savemat(folder / "setid.mat", ids)
    torchvision = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(torchvision.Flowers102, "_check_integrity", lambda self: True)
    for part in ("train", "val", "test"):
        ours, theirs = open_dataset(tmp_path, part=part), torchvision.Flowers102(tmp_path, split=part)
        assert ours.labels.tolist() == theirs._labels
        assert [ours.path(index) for index in range(len(ours))] == theirs._image_files
    (folder / "setid.mat").write_bytes(b"no mat")
    with pytest.raises(VitedgeError, match=r"setid\.mat can't be read"):
        open_dataset(tmp_path)


def test_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_args: object, **_keywords: object) -> None:
        raise ConnectionError("Couldn't reach 'cifar10' on the Hub")

    monkeypatch.setattr(datasets, "get_dataset_split_names", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    for name in ("hf:cifar10", "hf:cifar10:train[:10%]"):
        with pytest.raises(VitedgeError, match=r"can't be had from the Hub.*Couldn't reach") as caught:
            open_dataset(name)
        assert caught.value.exit_code == 1 and "network" in caught.value.todo


def test_the_hub_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(VitedgeError, match="datasets"):
        open_dataset("hf:cifar10")


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = datasets.Dataset.from_dict({"img": cells(4), "label": [2, 1, 0, 1]}, features=features)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: ["train", "test"])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows if split == "train" else rows.select([0]))
    train = open_dataset("hf:user/set", part="train")
    assert train.labels.tolist() == [2, 1, 0, 1] and train.classes == tuple(NAMES) and red(train, 3) == 3
    assert len(open_dataset("hf:user/set:test")) == 1 and train.origin == "hf:user/set"
    with pytest.raises(VitedgeError, match=r"no image column.*img"):
        open_dataset(with_columns("hf:user/set", "picture", None))


@pytest.mark.real
def test_cifar_10_as_the_hub_stores_it(shared_data: Path) -> None:
    train, test = (open_dataset(shared_data / "cifar10-parquet", part=part) for part in ("train", "test"))
    assert len(train) == 5000 and len(test) == 1000 and train.classes[0] == "airplane"
    assert np.bincount(test.labels).tolist() == [100] * 10
    folders = open_dataset(shared_data / "cifar10", train.classes, part="test")
    assert np.bincount(folders.labels).tolist() == [100] * 10
