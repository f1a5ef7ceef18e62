"""What the formats of data sets have in common: their parts, and their labels as the model's classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from vitedge.data.classes import class_indices, mismatch, named, natural_key, some
from vitedge.data.dataset import Dataset
from vitedge.errors import VitedgeError

log = logging.getLogger(__name__)

Part = Literal["train", "val", "test", "all"]
# Names of the parts of a data set, as people write them.
PARTS: dict[Part, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
PART_OF: dict[str, Part] = {name: part for part, spelled in PARTS.items() for name in spelled}
# Opens a part: (class names of the model, number of its classes, both None where not known) -> its images.
Opener = Callable[[tuple[str, ...] | None, int | None], Dataset]
Parts = dict[Part, Opener]


def choose(parts: Parts, part: Part, source: object) -> Opener:
    """The part that is asked for; where it is missing, the next of val, test, train, which is said."""
    order: tuple[Part, ...] = (part, "val", "test", "train", "all")
    chosen = next(name for name in order if name in parts)
    if len(parts) > 1:
        log.warning("%s has the parts %s: %s is taken", source, ", ".join(parts), chosen)
    return parts[chosen]


def say(source: object, said: Sequence[str]) -> None:
    """How labels were read, in the log."""
    for line in said:
        log.warning("%s: %s", source, line)


def to_classes(dataset: Dataset, classes: Sequence[str] | None, count: int | None) -> Dataset:
    """A data set that has class names of its own, with the model's in their place.

    Raises VitedgeError that shows both where they are others.
    """
    own, labels = dataset.classes or (), dataset.labels
    if not named(classes):
        if count is not None and count != len(own):
            raise VitedgeError(
                f"{dataset.root} has other classes than the model.",
                f"It names {len(own)} classes ({some(own)}), the model has {count}, whose names are not known.",
                "Give the names of the model's classes: --classes FILE.",
            )
        return dataset
    assert classes is not None
    if labels is None or own == tuple(classes):
        return replace(dataset, classes=tuple(classes))
    used = [own[i] for i in (np.flatnonzero(labels.any(0)) if dataset.multi_label else np.unique(labels))]
    index, _ = class_indices(own, classes, None, dataset.root)
    if wrong := [name for name in used if isinstance(index[name], str)]:
        raise mismatch(dataset.root, used, wrong, classes, "classes of the labels")
    places = np.array([found if isinstance(found := index[name], int) else -1 for name in own], np.int64)
    if dataset.multi_label:
        hot = np.zeros((len(labels), len(classes)), np.uint8)
        for at, place in enumerate(places.tolist()):
            if place >= 0:
                hot[:, place] |= labels[:, at]
        return replace(dataset, labels=hot, classes=tuple(classes))
    return replace(dataset, labels=places[labels], classes=tuple(classes))


def from_values(
    dataset: Dataset, values: Sequence[object], classes: Sequence[str] | None, count: int | None
) -> Dataset:
    """A data set with one label an image: integers, or names; as a labels.csv has them.

    Raises VitedgeError for labels of another kind, or that are no classes.
    """
    if wrong := [v for v in values if not isinstance(v, (int, str)) or isinstance(v, bool)]:
        raise VitedgeError(
            f"The labels of {dataset.root} are of the kind '{type(wrong[0]).__name__}'.",
            f"One is {wrong[0]!r:.40}; labels are class names, or indices from 0.",
            "Name another column: --label-column NAME.",
        )
    texts = [str(value) for value in values]
    if classes is None and any(isinstance(value, str) for value in values):
        classes = sorted(set(texts), key=natural_key)
        if count not in (None, len(classes)):
            return to_classes(replace(dataset, classes=tuple(classes)), None, count)
    index, said = class_indices(texts, classes, count, dataset.root)
    if wrong_names := [text for text, found in index.items() if isinstance(found, str)]:
        if named(classes):
            raise mismatch(dataset.root, list(index), wrong_names, classes or (), "labels")
        raise VitedgeError(
            f"{dataset.root} has wrong labels.",
            f"{len(wrong_names)} in all: {some(wrong_names)}; {index[wrong_names[0]]}.",
            "A label is a class index from 0, or a class name.",
        )
    say(dataset.root, said)
    labels = np.array([index[text] for text in texts], np.int64)
    return replace(dataset, labels=labels, classes=None if classes is None else tuple(classes))


def below(root: Path, name: str) -> Path | None:
    """The file `name` below `root`; None where it leads out of it, or is none."""
    path = root / name
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    return path if inside and path.is_file() else None
