"""Which images an artifact sees otherwise than FP32, out of the records of a bench run."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from vitedge.data.dataset import Dataset
from vitedge.data.image import UnreadableImage
from vitedge.report.classes import class_name


@dataclass(frozen=True)
class Flip:
    """One image: its number in the data set, what FP32 and the artifact say, and what is right (or
    None)."""

    index: int
    before: str
    after: str
    label: str | None
    kind: str  # "lost", "won" or "changed"
    image: str = ""  # a data: URL, or empty


@dataclass(frozen=True)
class Flips:
    """All that changed of one artifact: its most frequent pairs of classes (before, after, count), and
    images."""

    artifact: str
    lost: int
    won: int
    changed: int
    of: int
    pairs: tuple[tuple[str, str, int], ...]
    shown: tuple[Flip, ...]


def find_flips(
    artifact: str,
    records: np.ndarray,
    names: Sequence[str] | None,
    image: Callable[[int], str] = lambda index: "",
    *,
    most: int = 8,
) -> Flips | None:
    """The flips in an artifact's records, the lost ones first; None where there is no reference in them."""
    if records.size == 0 or (records["reference"] < 0).any():
        return None

    name = partial(class_name, names)
    changed = records[records["pred"] != records["reference"]]
    known = changed["label"] >= 0
    lost = known & (changed["reference"] == changed["label"])
    won = known & (changed["pred"] == changed["label"])
    pairs = Counter((int(r["reference"]), int(r["pred"])) for r in changed).most_common(most)
    order = np.argsort(np.where(lost, 0, np.where(won, 1, 2)), kind="stable")[:most]
    shown = tuple(
        Flip(
            int(changed[k]["index"]),
            name(int(changed[k]["reference"])),
            name(int(changed[k]["pred"])),
            name(int(changed[k]["label"])) if known[k] else None,
            "lost" if lost[k] else "won" if won[k] else "changed",
            image(int(changed[k]["index"])),
        )
        for k in order
    )
    counted = tuple((name(before), name(after), count) for (before, after), count in pairs)
    return Flips(artifact, int(lost.sum()), int(won.sum()), int(changed.size), int(records.size), counted, shown)


def thumbnail(dataset: Dataset, index: int, side: int = 128) -> str:
    """An image's centre as a small JPEG in a data: URL; empty where it can't be read."""
    try:
        image = dataset.open(index)
    except UnreadableImage:
        return ""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    image = image.crop((left, top, left + short, top + short)).resize((side, side))
    return jpeg_url(image)


def jpeg_url(image: object, quality: int = 72) -> str:
    """A Pillow image as a data: URL."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)  # type: ignore[attr-defined]
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
