from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitedge.data import dataset as datasets
from vitedge.data.dataset import Dataset
from vitedge.data.folder import open_dataset
from vitedge.data.image import open_rgb
from vitedge.data.loader import iter_batches
from vitedge.data.preprocess import Preprocess
from vitedge.data.sample import load_pixels, sample
from vitedge.errors import VitedgeError

PREPROCESS = Preprocess(8, 8)


def numbered(root: Path, count: int) -> Dataset:
    """Images whose red is their number."""
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / f"{number:04}.bmp")
    return open_dataset(root)


def red(pixels: np.ndarray) -> list[int]:
    return pixels[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_in_order(tmp_path: Path, threads: int, batch_size: int) -> None:
    dataset = numbered(tmp_path, 11)
    batches = list(iter_batches(dataset, PREPROCESS, batch_size, threads))
    assert [len(pixels) for pixels, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert all(pixels.dtype == np.uint8 and pixels.shape[1:] == (8, 8, 3) for pixels, _ in batches)
    assert red(np.concatenate([pixels for pixels, _ in batches])) == list(range(11))
    assert np.concatenate([indices for _, indices in batches]).tolist() == list(range(11))


def test_no_more_than_a_batch_and_two_a_thread_are_decoded_ahead(tmp_path: Path, monkeypatch) -> None:
    opened = []
    monkeypatch.setattr(datasets, "open_rgb", lambda path, **how: opened.append(path) or open_rgb(path, **how))
    iterator = iter(iter_batches(numbered(tmp_path, 60), PREPROCESS, 5, 2))
    for taken in range(1, 6):
        next(iterator)
        assert len(opened) <= 5 * taken + 5 + 2 * 2
    iterator.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_unreadable_images_are_skipped_and_listed(tmp_path: Path, caplog) -> None:
    dataset = numbered(tmp_path, 200)
    (tmp_path / "0003.bmp").write_bytes(b"")
    (tmp_path / "0100.bmp").write_bytes(b"BMxx")
    batches = iter_batches(dataset, PREPROCESS, 64)
    for _ in range(2):  # a second pass counts anew
        found = list(batches)
        indices = np.concatenate([indices for _, indices in found]).tolist()
        assert indices == [index for index in range(200) if index not in (3, 100)]
        assert red(np.concatenate([pixels for pixels, _ in found])) == indices
        assert [len(pixels) for pixels, _ in found] == [64, 64, 64, 6]
        assert [file for file, _ in batches.skipped] == ["0003.bmp", "0100.bmp"]
    assert "2 of 200 images" in caplog.text and "0003.bmp: the file is empty" in caplog.text


def test_over_one_percent_is_an_error(tmp_path: Path) -> None:
    dataset = numbered(tmp_path, 199)
    for number in (3, 100):
        (tmp_path / f"{number:04}.bmp").write_bytes(b"")
    with pytest.raises(VitedgeError, match="2 of 199") as caught:
        list(iter_batches(dataset, PREPROCESS, 64))
    assert "0100.bmp" in caught.value.why


def test_nothing_but_a_broken_or_hopeless_image(tmp_path: Path) -> None:
    Image.new("RGB", (1, 20_000)).save(tmp_path / "line.png")
    with pytest.raises(VitedgeError, match="too narrow"):
        list(iter_batches(open_dataset(tmp_path), Preprocess(224, 224)))


def test_image_files_have_three_channels(tmp_path: Path) -> None:
    """Not "unreadable": the files are right, the model takes something else."""
    prep = Preprocess(8, 8, mean=(0.5,) * 6, std=(0.5,) * 6)
    with pytest.raises(VitedgeError, match="6 channels") as caught:
        iter_batches(numbered(tmp_path, 2), prep)
    assert "without --calib" in caught.value.todo


def test_a_wrong_batch_size(tmp_path: Path) -> None:
    with pytest.raises(VitedgeError, match="batch size is 0"):
        iter_batches(numbered(tmp_path, 1), PREPROCESS, 0)


def three_classes() -> Dataset:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    return Dataset(Path("."), tuple(f"{number}.png" for number in range(100)), labels)


@pytest.mark.parametrize("n", [1, 2, 7, 10, 33, 99])
def test_each_class_has_its_share(n: int) -> None:
    part = sample(three_classes(), n, seed=3)
    assert len(part) == n == len(set(part.files))
    counts = np.bincount(part.labels, minlength=3)
    assert (np.abs(counts - n * np.array([0.6, 0.3, 0.1])) <= 1).all()


def test_samples_follow_the_seed_and_keep_the_order() -> None:
    dataset = three_classes()
    numbers = [int(file[:-4]) for file in sample(dataset, 20, 0).files]
    assert numbers == sorted(numbers)
    assert sample(dataset, 20, 0).files == sample(dataset, 20, 0).files != sample(dataset, 20, 1).files
    assert set(sample(dataset, 20, 0).files) < set(sample(dataset, 50, 0).files)
    assert sample(dataset, None) is dataset and sample(dataset, 100) is dataset and sample(dataset, 101) is dataset
    unlabelled = Dataset(Path("."), dataset.files)
    assert len(set(sample(unlabelled, 20, 0).files)) == 20
    several = Dataset(Path("."), dataset.files, np.eye(3, dtype=np.uint8)[dataset.labels])
    assert sample(several, 20, 0).labels.shape == (20, 3)
    with pytest.raises(VitedgeError):
        sample(dataset, 0)


def test_pixels_on_disk(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    dataset = numbered(tmp_path / "set", 150)
    (tmp_path / "set" / "0007.bmp").write_bytes(b"")
    pixels, used = load_pixels(dataset, PREPROCESS, None, 0, tmp_path / "out" / "pixels.npy", batch_size=40)
    assert pixels.shape == (149, 8, 8, 3) and not pixels.flags.writeable and isinstance(pixels, np.memmap)
    assert red(pixels) == [int(file[:-4]) for file in used.files]
    assert "0007.bmp" not in used.files
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pixels.npy"]
    few, used = load_pixels(used, PREPROCESS, 12, 5, tmp_path / "few.npy")
    assert red(few) == [int(file[:-4]) for file in used.files] and len(used) == 12


def test_failed_pixels_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    dataset = numbered(tmp_path / "set", 10)
    (tmp_path / "set" / "0007.bmp").write_bytes(b"")
    with pytest.raises(VitedgeError, match="unreadable"):
        load_pixels(dataset, PREPROCESS, None, 0, tmp_path / "pixels.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.real
def test_photographs_through_the_loader_are_torchvisions(shared_data: Path) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    theirs = transforms.Compose(
        [transforms.Resize(248, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
    )
    dataset = sample(open_dataset(shared_data / "val"), 16)
    preprocess = Preprocess.load(shared_data / "vit_ti_16" / "preprocess.json")
    for pixels, indices in iter_batches(dataset, preprocess, 8):
        for ours, index in zip(pixels, indices, strict=True):
            with Image.open(dataset.path(index)) as image:
                np.testing.assert_array_equal(ours, np.asarray(theirs(image.convert("RGB"))))
