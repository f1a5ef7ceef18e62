"""The layouts of a data set: labels.csv, one sub-folder a class, images alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitedge.data.dataset import Dataset
from vitedge.data.image import is_image
from vitedge.data.labels import read_labels
from vitedge.errors import VitedgeError


def open_dataset(
    folder: str | Path, classes: Sequence[str] | None = None, class_count: int | None = None
) -> Dataset:
    """The images of a folder, in one of three layouts:

    1. `labels.csv` with the columns `file,label`: a path below the folder, and a class index from 0 or a
       class name. With the column `labels` instead, the set is multi-label: indices or names separated by
       `;`, or nothing. Other columns are ignored.
    2. One sub-folder a class, as in torchvision's ImageFolder. The names stand in `classes` in any order;
       where they don't, but are as many, the sorted names are the classes in their order.
    3. Images alone, in any depth, without labels.

    Args:
        classes: the class names of the model, which labels index; else those of `classes.txt` in the folder.
        class_count: how many classes there are, where no names are known.

    Raises:
        VitedgeError: no such folder, no images, or labels that make no sense.
    """
    root = Path(folder)
    if not root.is_dir():
        why = "It is a file." if root.exists() else "There is no such folder."
        raise VitedgeError(f"{root} is not a data set.", why, _LAYOUTS)
    if classes is None and (root / "classes.txt").is_file():
        classes = read_classes(root / "classes.txt")
    known = None if classes is None else tuple(classes)
    class_count = class_count if known is None else len(known)
    if (root / "labels.csv").is_file():
        files, labels = read_labels(root / "labels.csv", known, class_count)
        return Dataset(root, files, labels, known)
    found = _images(root)
    if not found:
        raise VitedgeError(f"{root} holds no images.", "", _LAYOUTS)
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != ".")
    labelled = len(folders) > 1 or (known is not None and folders and folders[0] in known)
    if not labelled or any("/" not in file for file in found):
        return Dataset(root, found, None, known)
    index = _folder_indices(root, folders, known, class_count)
    labels = np.array([index[file.split("/", 1)[0]] for file in found], np.int64)
    return Dataset(root, found, labels, known or tuple(folders))


def open_images(paths: Sequence[str | Path]) -> Dataset:
    """Images given one by one, and all those in given folders; without labels.

    Raises VitedgeError where a path does not exist or a folder holds no images. A file is taken whatever
    its name is.
    """
    files: list[str] = []
    for path in map(Path, paths):
        if path.is_dir():
            files += [str(path / file) for file in open_dataset(path).files]
        elif path.is_file():
            files.append(str(path))
        else:
            raise VitedgeError(f"{path} does not exist.", "", "Pass images, or folders of images.")
    return Dataset(Path("."), tuple(files))


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Class names, one a line; empty lines at the end are none.

    Raises VitedgeError where the file is unreadable, empty or has empty lines between names.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VitedgeError(f"{path} could not be read.", f"{error}.", _CLASSES) from error
    names = tuple(line.strip() for line in lines)
    if empty := [number for number, name in enumerate(names, 1) if not name]:
        raise VitedgeError(f"{path} has an empty line.", f"It is line {empty[0]}.", _CLASSES)
    if not names:
        raise VitedgeError(f"{path} is empty.", "", _CLASSES)
    return names


def _images(root: Path) -> tuple[str, ...]:
    """Paths of all images below `root`, sorted, hidden files and folders left out."""
    found = []
    for folder, below, names in os.walk(root, followlinks=True):
        below[:] = [name for name in below if name[0] != "."]
        found += [Path(folder, name) for name in names if is_image(Path(name))]
    return tuple(sorted(path.relative_to(root).as_posix() for path in found))


def _folder_indices(
    root: Path, folders: list[str], classes: tuple[str, ...] | None, class_count: int | None
) -> dict[str, int]:
    """The class index of each sub-folder."""
    unknown = [name for name in folders if classes is not None and classes.count(name) != 1]
    if classes is not None and not unknown:
        return {name: classes.index(name) for name in folders}
    if class_count is not None and len(folders) != class_count:
        raise VitedgeError(
            f"The sub-folders of {root} do not fit the classes.",
            f"There are {len(folders)} sub-folders and {class_count} classes"
            + (f"; not among the class names: {_some(unknown)}." if unknown else "."),
            "Name the sub-folders as the classes, or have one for each class, sorted in their order.",
        )
    return {name: index for index, name in enumerate(folders)}


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


_LAYOUTS = (
    "Pass a folder with a labels.csv (`file,label`), with one sub-folder of images a class, "
    "or with images alone where no labels are needed."
)
_CLASSES = "Write one class name a line, in the order of the model's outputs."
