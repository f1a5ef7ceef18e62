"""What a finished training leaves: a model folder, and its figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.files import clean, locked, make_folder, write_json, write_text
from vitedge.tables import Table, to_json
from vitedge.train.metrics import Tally
from vitedge.vit.architecture import Architecture
from vitedge.vit.checkpoint import save_model

# What a training writes, or a data set or a run holds: no folder with one of these is written to.
_FILES = (
    *("model.safetensors", "arch.json", "preprocess.json", "classes.txt", "training.json", "metrics.csv"),
    *("labels.csv", "manifest.json"),
)


@contextmanager
def own_folder(folder: Path, *, free: bool) -> Iterator[None]:
    """Holds `folder`, made where it is missing, while a model is trained into it.

    Raises VitedgeError where another process has it, and, with `free`, where something in it would be replaced. One
    that was made here and stays empty is removed.
    """
    made = not folder.exists()
    try:
        with locked(make_folder(folder) / ".lock", "training into"):
            clean(folder, below=True)
            if free and (there := [name for name in _FILES if (folder / name).exists()]):
                raise VitedgeError(
                    f"'{folder}' is not empty.",
                    f"It holds {', '.join(there[:3])}.",
                    "Give another folder with --out, go on with --resume, or replace what is there with --overwrite.",
                )
            yield
    finally:
        if made and [path.name for path in folder.iterdir()] == [".lock"]:
            (folder / ".lock").unlink()
            folder.rmdir()


def save_folder(folder: Path, model: Architecture, preprocess: Preprocess, classes: list[str] | None) -> None:
    """Writes the folder that `--model` takes: weights, `arch.json`, `preprocess.json`, `classes.txt`."""
    save_model(folder, model)
    preprocess.save(folder / "preprocess.json")
    if classes:
        write_text(folder / "classes.txt", "".join(f"{name}\n" for name in classes))


def write_figures(folder: Path, figures: Mapping[str, object], tally: Tally, classes: list[str]) -> None:
    """Writes `training.json`: the figures of the run, and tables of each class and of the confusions.

    The tables have the form that the report renders. The largest confusions are listed, not the whole matrix,
    which stands under "confusion".
    """
    sigmoid = tally.activation == "sigmoid"
    support = (tally.table[:, 0] + tally.table[:, 2]) if sigmoid else tally.confusion.sum(1)
    rows = [[name, int(n), value] for name, n, value in zip(classes, support.tolist(), tally.per_class(), strict=True)]
    measure = "F1" if sigmoid else "accuracy"
    tables = [Table("Each class", ["class", "images", measure], rows)]
    wrong = tally.confusion.clone().fill_diagonal_(0)
    if not sigmoid:
        order = wrong.flatten().argsort(descending=True)[:10].tolist()
        pairs = [divmod(i, len(classes)) for i in order if wrong.flatten()[i] > 0]
        tables.append(
            Table(
                "Most frequent confusions",
                ["is", "taken for", "images"],
                [[classes[t], classes[p], int(wrong[t, p])] for t, p in pairs],
            )
        )
    confusion = [] if sigmoid else tally.confusion.long().tolist()
    write_json(folder / "training.json", {**figures, **to_json(*tables), "confusion": confusion})
