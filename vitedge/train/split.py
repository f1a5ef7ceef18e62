"""Which images teach, which choose the best weights, which are only for the final figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from vitedge.data.classes import read_classes
from vitedge.data.dataset import Dataset
from vitedge.data.folder import open_parts
from vitedge.errors import VitedgeError


def split_folder(
    data: str | Path,
    fraction: float,
    seed: int,
    classes: tuple[str, ...] | None = None,
    fold: tuple[int, int] | None = None,
) -> tuple[Dataset, Dataset, Dataset | None]:
    """Training, validation and test images of a data set.

    A set with the parts `train` and `val` (or `valid`, `validation`, `dev`) is split by them. Else `fraction` of each
    class is drawn for validation, with the seed; or, with `fold` (k, n), the k-th of n equal parts of it (from 1). The
    part `test` is the test set; without it there is none.

    Raises:
        VitedgeError: no labels, one class only, or a class without images in the training or validation part.
    """
    parts, root = open_parts(data), Path(data)
    if classes is None and (root / "classes.txt").is_file():
        classes = read_classes(root / "classes.txt")  # of the whole set, above its parts
    source = parts.get("train", parts.get("all"))
    if source is None:
        why = f"Its parts are {', '.join(parts)}."
        raise VitedgeError(f"{data} has no training images.", why, "Give a data set with a part 'train'.")
    train, test = source(classes, None), None
    # One sub-folder alone is no class for `open_dataset`: images without labels may lie in one too.
    if train.labels is None and train.contents is None and all("/" in file for file in train.files):
        raise _one_class(train.root)
    if "val" in parts and fold is None:
        val = parts["val"](train.classes, None)
    else:
        train, val = split_dataset(train, fraction, seed, fold)
    if "test" in parts:
        test = parts["test"](train.classes, None)
        # A test part without labels, as competitions give it, judges nothing.
        test = None if test.labels is None else test
    check_parts(train, val)
    return train, val, test


def split_dataset(
    dataset: Dataset, fraction: float, seed: int, fold: tuple[int, int] | None = None
) -> tuple[Dataset, Dataset]:
    """`dataset` without and with about `fraction` of each class, at least one image, or its fold; fixed by the seed.

    Multi-label sets are split as a whole.
    """
    labels = dataset.require_labels("Training", class_count(dataset))
    generator = np.random.default_rng(seed)
    groups = np.zeros(len(dataset), np.int64) if dataset.multi_label else labels
    held = np.zeros(len(dataset), bool)
    for label in np.unique(groups):
        members = generator.permutation(np.flatnonzero(groups == label))
        chosen = members[fold[0] - 1 :: fold[1]] if fold else members[: max(1, round(len(members) * fraction))]
        held[chosen] = True
    return dataset.subset(np.flatnonzero(~held)), dataset.subset(np.flatnonzero(held))


def class_counts(dataset: Dataset, classes: int) -> np.ndarray:
    """Images of each class, int64 [classes]."""
    labels = dataset.require_labels("Training", classes)
    if dataset.multi_label:
        return labels.sum(0, dtype=np.int64)
    return np.bincount(labels, minlength=classes)


def check_parts(train: Dataset, val: Dataset) -> None:
    """Raises VitedgeError for a class that one part has images of and the other has none of, and for one class."""
    classes = max(class_count(train), class_count(val))
    ours, theirs = class_counts(train, classes) > 0, class_counts(val, classes) > 0
    for missing, where, other in (
        (theirs & ~ours, "training", "validation"),
        (ours & ~theirs, "validation", "training"),
    ):
        if missing.any():
            names = [_name(train, int(i)) for i in np.flatnonzero(missing)]
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise VitedgeError(
                f"{len(names)} class{'es have' if len(names) > 1 else ' has'} no {where} images.",
                f"Without any in the {where} part, but with some for {other}: {', '.join(names[:5])}{more}.",
                "Give each class at least two images, or move some from one part to the other.",
            )
    if ours.sum() < 2 and not train.multi_label:
        raise _one_class(train.root)


def _one_class(root: Path) -> VitedgeError:
    return VitedgeError(
        f"The images of {root} are all of one class.",
        "A classifier has nothing to tell apart there.",
        "Give images of at least two classes, each in a sub-folder of its own or with a labels.csv.",
    )


def class_count(dataset: Dataset) -> int:
    """How many classes the names, or the labels, speak of."""
    if dataset.classes is not None:
        return len(dataset.classes)
    if dataset.labels is None:
        return 0
    return dataset.labels.shape[1] if dataset.multi_label else int(dataset.labels.max(initial=-1)) + 1


def _name(dataset: Dataset, index: int) -> str:
    return dataset.classes[index] if dataset.classes else str(index)


def balanced(targets: Tensor) -> Tensor:
    """How often each image is to be shown [N], so that every class is shown equally often; `targets` [N, classes]."""
    rarity = 1 / targets.sum(0).clamp_min(1)
    return (targets * rarity).amax(1).clamp_min(1 / len(targets))


def parse_fold(text: str) -> tuple[int, int]:
    """(k, n) of "k/n". Raises VitedgeError where there is no such fold."""
    k, n = map(int, text.split("/"))
    if k > n or n < 2:
        raise VitedgeError(f"There is no fold {text}.", "", "Write --fold 1/5 to --fold 5/5.")
    return k, n
