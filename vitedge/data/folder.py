"""The layouts of a data set: labels.csv, one sub-folder a class, images alone, and these in train, val and test."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from vitedge.data.classes import Names, class_indices, mismatch, named, natural_key, read_classes, some
from vitedge.data.dataset import Dataset
from vitedge.data.labels import read_labels
from vitedge.data.scan import find_images, no_images, subfolders
from vitedge.errors import VitedgeError

log = logging.getLogger(__name__)

Part = Literal["train", "val", "test"]
# Names of the parts of a data set, as sub-folders of its root.
PARTS: dict[Part, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def open_dataset(
    folder: str | Path,
    classes: Sequence[str] | None = None,
    class_count: int | None = None,
    part: Part = "val",
) -> Dataset:
    """The images of a folder, in one of these layouts:

    1. `labels.csv` with the columns `file,label` (or `file,labels`: several separated by `;`), as `read_labels` takes
       it. Labels are names of `classes`, or indices: into the folder's own `classes.txt` where it has one.
    2. One sub-folder a class, as in torchvision's ImageFolder: named as the classes, by one of their synonyms, by
       their WordNet ids, or by their indices. Only where no names of the classes are known, the sub-folders are the
       classes in their natural order (class2 before class10).
    3. Images alone, in any depth, without labels.
    4. `train`, `val`, `test` with one of these below them.

    Args:
        classes: the class names of the model, which labels index; else those of `classes.txt` in the folder.
        class_count: how many classes there are, where no names are known.
        part: which is taken of a folder with parts; where it is missing, the next of val, test, train.

    How labels were read where that is not plain is said as a warning of the log.

    Raises:
        VitedgeError: no such folder, no images, or labels that make no sense or are of other classes.
    """
    root = Path(folder)
    if not root.is_dir():
        why = "It is a file." if root.exists() else "There is no such folder."
        raise VitedgeError(f"{root} is not a data set.", why, LAYOUTS)
    own = read_classes(root / "classes.txt") if (root / "classes.txt").is_file() else None
    if not (root / "labels.csv").is_file() and (parts := find_parts(root, classes or own)):
        chosen = next(name for name in (part, "val", "test", "train") if name in parts)
        log.warning("%s has the parts %s: %s is taken", root, ", ".join(p.name for p in parts.values()), parts[chosen])
        return open_dataset(parts[chosen], classes or own, class_count)
    if classes is None and own is not None and class_count not in (None, len(own)):
        raise VitedgeError(
            f"{root} has other classes than the model.",
            f"It names {len(own)} classes ({some(own)}), the model has {class_count}, whose names are not known.",
            "Give the names of the model's classes: --classes FILE.",
        )
    known = None if classes is None and own is None else tuple(classes or own or ())
    class_count = class_count if known is None else len(known)
    if (root / "labels.csv").is_file():
        # Numbers in a folder with class names of its own are indices into these.
        theirs = own if own is not None and named(known) and own != known else known
        files, labels, said = read_labels(root / "labels.csv", theirs, len(theirs) if theirs else class_count)
        _say(root / "labels.csv", said)
        dataset = Dataset(root, files, labels, theirs)
        return dataset if theirs == known else _mapped(dataset, known or ())
    found = find_images(root)
    if not found:
        raise no_images(root, LAYOUTS)
    folders = sorted({file.partition("/")[0] for file in found if "/" in file}, key=natural_key)
    labelled = len(folders) > 1 or (known and folders and isinstance(Names(known, root)(folders[0]), int))
    if not labelled or any("/" not in file for file in found):
        return Dataset(root, found, None, known)
    index, names = _folder_classes(root, folders, known, class_count)
    return Dataset(root, found, np.array([index[file.partition("/")[0]] for file in found], np.int64), names)


def find_parts(root: Path, classes: Sequence[str] | None = None) -> dict[Part, Path]:
    """The parts that `root` is split into; none where a sub-folder is anything else, or these are class names."""
    folders = subfolders(root)
    names = {name: part for part, spelled in PARTS.items() for name in spelled}
    if not folders or any(name.lower() not in names for name in folders) or set(folders) <= set(classes or ()):
        return {}
    return {names[name.lower()]: root / name for name in reversed(folders)}


def open_images(paths: Sequence[str | Path]) -> Dataset:
    """Images given one by one, and all those in given folders; without labels.

    Raises VitedgeError where a path does not exist or a folder holds no images. A file is taken whatever
    its name is.
    """
    files: list[str] = []
    for path in map(Path, paths):
        if path.is_dir():
            if not (found := find_images(path)):
                raise no_images(path, LAYOUTS)
            files += [str(path / file) for file in found]
        elif path.is_file():
            files.append(str(path))
        else:
            there = path.exists() or path.is_symlink()
            what = "is no regular file" if there else "does not exist"
            raise VitedgeError(f"{path} {what}.", "", "Pass images, or folders of images.")
    return Dataset(Path("."), tuple(files))


def _folder_classes(
    root: Path, folders: list[str], classes: tuple[str, ...] | None, count: int | None
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The class index of each sub-folder (they are in natural order), and the names that the indices index."""
    index, said = class_indices(folders, classes, count, root)
    wrong = [name for name, found in index.items() if isinstance(found, str)]
    numbers = all(name.isdecimal() for name in folders)
    if wrong and named(classes):
        raise mismatch(root, folders, wrong, classes or (), "sub-folders")
    if wrong or count is None:
        if count is not None and len(folders) != count:
            raise VitedgeError(
                f"The sub-folders of {root} do not fit the classes.",
                f"There are {len(folders)} sub-folders ({some(folders)}) and {count} classes without known names.",
                "Give the names of the classes (--classes FILE), or have one sub-folder for each, in their order.",
            )
        index, said = {name: number for number, name in enumerate(folders)}, []
        if count is not None or folders != sorted(folders):
            said = [f"the sub-folders are the classes in natural order: {some(folders, 3)}"]
    elif numbers and not named(classes):
        said = said or [f"the sub-folders are class indices: {some(folders, 3)}"]
    _say(root, said)
    return {name: int(found) for name, found in index.items()}, classes or tuple(folders)


def _mapped(dataset: Dataset, classes: tuple[str, ...]) -> Dataset:
    """The same with the model's class names in the place of its own. Raises VitedgeError that shows both."""
    own, labels = dataset.classes or (), dataset.labels
    assert labels is not None
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
        return replace(dataset, labels=hot, classes=classes)
    return replace(dataset, labels=places[labels], classes=classes)


def _say(source: Path, said: list[str]) -> None:
    for line in said:
        log.warning("%s: %s", source, line)


LAYOUTS = (
    "Pass a folder with a labels.csv (`file,label`), with one sub-folder of images a class, "
    "or with images alone where no labels are needed."
)
