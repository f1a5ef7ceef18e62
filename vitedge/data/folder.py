"""The layouts of a data set: labels.csv, one sub-folder a class, images alone, and these in train, val and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from vitedge import documents
from vitedge.data import cifar, flowers, hub, parquet, textures
from vitedge.data.classes import Names, class_indices, mismatch, named, natural_key, read_classes, some
from vitedge.data.dataset import Dataset
from vitedge.data.formats import PART_OF, Opener, Part, Parts, choose, say, to_classes
from vitedge.data.labels import read_labels
from vitedge.data.options import split_columns, with_columns
from vitedge.data.scan import find_images, no_images, subfolders
from vitedge.errors import VitedgeError


def open_dataset(
    data: str | Path,
    classes: Sequence[str] | None = None,
    class_count: int | None = None,
    part: Part = "val",
) -> Dataset:
    """The images of a data set: of a folder, Parquet files, a name of the Hub, or pickled batches of CIFAR.

    A folder has one of these layouts:

    1. `labels.csv` with the columns `file,label` (or `file,labels`: several separated by `;`), as `read_labels` takes
       it. Labels are names of `classes`, or indices: into the folder's own `classes.txt` where it has one.
    2. One sub-folder a class, as in torchvision's ImageFolder: named as the classes, by one of their synonyms, by
       their WordNet ids, or by their indices. Only where no names of the classes are known, the sub-folders are the
       classes in their natural order (class2 before class10).
    3. Images alone, in any depth, without labels.
    4. `train`, `val`, `test` with one of these below them.

    Args:
        data: as `open_parts` takes it.
        classes: the class names of the model, which labels index; else those of `classes.txt` in the folder.
        class_count: how many classes there are, where no names are known.
        part: which is taken of a set with parts; where it is missing, the next of val, test, train.

    How labels were read where that is not plain is said as a warning of the log.

    Raises:
        VitedgeError: no such folder, no images, or labels that make no sense or are of other classes.
    """
    known = None if classes is None else tuple(classes)
    return choose(open_parts(data), part, data)(known, class_count if known is None else len(known))


def open_parts(data: str | Path) -> Parts:
    """The parts of a data set, or its whole as "all", each to be opened with the model's classes.

    data: a path, or hf:NAME; `?image=COLUMN&label=COLUMN&part=PART` after it names columns and part of a table.
    """
    text, image, label, part = split_columns(str(data))
    if (drawn := textures.open_textures(text)) is not None:
        return {"all": lambda classes, count: drawn}
    if parts := hub.find(text, image, label):
        return parts
    root = Path(text)
    if parts := parquet.find(root, image, label):
        place = str(root.resolve())
        return {
            name: _with_origin(opener, with_columns(place, image, label, name if len(parts) > 1 else None))
            for name, opener in parts.items()
            if part in (None, name)
        }
    if root.suffix == ".txt" and root.is_file():
        return {"all": lambda classes, count: open_list(root)}
    if not root.is_dir():
        why = "It is a file." if root.exists() else "There is no such folder."
        raise VitedgeError(f"{root} is not a data set.", why, LAYOUTS)
    if parts := cifar.find(root) or flowers.find(root):
        return parts
    own = read_classes(root / "classes.txt") if (root / "classes.txt").is_file() else None
    if not (root / "labels.csv").is_file() and (folders := find_parts(root, own)):
        # A model may have classes that are called train and val.
        return {name: partial(_part, root, folder, own) for name, folder in folders.items()}
    return {"all": partial(_open_folder, root)}


def is_there(data: str | Path) -> bool:
    """Whether `data` still names something; of the Hub that is not asked."""
    text = split_columns(str(data))[0]
    return text.startswith((hub.PREFIX, textures.NAME)) or Path(text).exists()


def _with_origin(opener: Opener, origin: str) -> Opener:
    return lambda classes, count: replace(opener(classes, count), origin=origin)


def _part(
    root: Path, folder: Path, own: tuple[str, ...] | None, classes: tuple[str, ...] | None, count: int | None
) -> Dataset:
    if not find_parts(root, classes):
        return _open_folder(root, classes, count)
    if classes is None and own is not None:
        to_classes(Dataset(root, (), classes=own), None, count)
    return _open_folder(folder, classes or own, count)


def _open_folder(root: Path, classes: tuple[str, ...] | None, class_count: int | None) -> Dataset:
    own = read_classes(root / "classes.txt") if (root / "classes.txt").is_file() else None
    if classes is None and own is not None:
        to_classes(Dataset(root, (), classes=own), None, class_count)
    known = own if classes is None else classes
    class_count = class_count if known is None else len(known)
    if (root / "labels.csv").is_file():
        # Numbers in a folder with class names of its own are indices into these.
        theirs = own if own is not None and named(known) else known
        files, labels, said = read_labels(root / "labels.csv", theirs, len(theirs) if theirs else class_count)
        say(root / "labels.csv", said)
        dataset = Dataset(root, files, labels, theirs)
        return dataset if theirs == known else to_classes(dataset, known, class_count)
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
    if any(name.lower() in PART_OF for name in folders):  # calibration images may lie beside the parts
        folders = [name for name in folders if name.lower() not in ("calib", "calibration")]
    if not folders or any(name.lower() not in PART_OF for name in folders) or set(folders) <= set(classes or ()):
        return {}
    return {PART_OF[name.lower()]: root / name for name in reversed(folders)}


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


def open_list(path: Path) -> Dataset:
    """Images that a text file lists, a path a line, counted from its folder; without labels.

    As rknn-toolkit2's `dataset.txt`: of several paths in a line, the first is the image. Raises VitedgeError.
    """
    lines = [line.strip() for line in documents.read_text(path, most=2**26).splitlines()]
    listed = [line for line in lines if line and not line.startswith("#")]
    # A path may hold blanks; else several in a line are the inputs of one run.
    names = [line if (path.parent / line).is_file() else line.split()[0] for line in listed]
    if not names:
        raise VitedgeError(f"{path} lists no images.", "", "Write the path of one image a line.")
    if wrong := [name for name in names if not (path.parent / name).is_file()]:
        why = f"{len(wrong)} in all: {some(wrong)}. Paths count from {path.parent}."
        if all(name.endswith(".npy") for name in names):
            why = "They are NumPy arrays; vitedge prepares images itself, as the model's preprocessing says."
        raise VitedgeError(f"{path} lists files that are no images.", why, "List existing images, one a line.")
    return Dataset(path.parent, tuple(names), origin=str(path.resolve()))


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
    say(root, said)
    return {name: int(found) for name, found in index.items()}, classes or tuple(folders)


LAYOUTS = (
    "Pass a folder with a labels.csv (`file,label`), with one sub-folder of images a class, "
    "or with images alone where no labels are needed."
)
