"""500 mutated images and label files: each is read, or refused in the words of one error; nothing else comes out."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vitedge.data.folder import open_dataset
from vitedge.data.image import UnreadableImage, open_rgb
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError

PREPROCESS = Preprocess(16, 16)
BOUNDED = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck), "database": None}


def _encoded() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    kinds = [
        ("RGB", "JPEG"),
        ("RGB", "PNG"),
        ("P", "GIF"),
        ("RGB", "BMP"),
        ("RGB", "WEBP"),
        ("RGB", "TIFF"),
        ("L", "PPM"),
    ]
    images = []
    for mode, kind in [*kinds, ("RGBA", "PNG"), ("CMYK", "JPEG"), ("1", "TIFF"), ("P", "PNG")]:
        images.append(io.BytesIO())
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).convert(mode).save(images[-1], kind, **({"exif": exif} if kind == "JPEG" else {}))
    return [image.getvalue() for image in images]


ENCODED = _encoded()
CHANGES = st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=0, max_size=8), st.integers(0, 12)), max_size=6)


def mutated(content: bytes, changes: list[tuple[int, bytes, int]]) -> bytes:
    """`content` with some stretches replaced, inserted or cut out."""
    for at, new, removed in changes:
        at %= len(content) + 1
        content = content[:at] + new + content[at + removed :]
    return content


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, **BOUNDED)
@given(st.sampled_from(ENCODED), CHANGES, st.one_of(st.none(), st.integers(0, 600)))
def test_mutated_images(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, changes: list, cut: int | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.img"
    path.write_bytes(mutated(content, changes)[:cut])
    try:
        pixels = PREPROCESS.apply(open_rgb(path))
    except UnreadableImage as error:
        assert error.reason and error.path == str(path)
    except ValueError as error:  # the loader's reason for an image that can't be resized
        assert "narrow" in str(error)
    else:
        assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8


LINES = [
    *("file,label", "file;label", "File\tClass", "image,labels", "file", "", "a.png,0", "b.png,1", "sub/c.png,2"),
    *(
        "a.png;0",
        "a.png\t1",
        "../x.png,0",
        "set/a.png,dog",
        "a,1",
        "b.png,cat;dog",
        '"a.png',
        "b.png,99999999999999999999",
    ),
    *("a.png,-1", "a.png,1.0", "a.png,", ",1", "a.png,0,1,2", "n01440764,1", "\ufeffa.png,1", "a.png\0,1"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "set"
    for name in ("a.png", "b.png", "sub/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


@settings(max_examples=200, **BOUNDED)
@given(
    lines=st.lists(st.sampled_from(LINES), max_size=7),
    changes=CHANGES,
    names=st.sampled_from([None, ["cat", "dog", "bird"], ["1", "2", "3"], ["LABEL_0", "LABEL_1", "LABEL_2"]]),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-8-sig", "utf-32"]),
)
def test_mutated_label_files(root: Path, lines: list, changes: list, names: list[str] | None, encoding: str) -> None:
    (root / "labels.csv").write_bytes(mutated("\n".join(lines).encode(encoding), changes))
    try:
        dataset = open_dataset(root, names, None if names else 3)
    except VitedgeError as error:
        assert error.what and error.todo
        str(error).encode()
    else:
        assert len(dataset) and all(dataset.path(i).resolve().is_relative_to(root) for i in range(len(dataset)))
        assert dataset.labels.max() < 3 and dataset.labels.min() >= 0
