"""Figures of a model on labelled images, and where they are logged."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitedge.errors import VitedgeError, install_command
from vitedge.files import write_text


class Tally:
    """Sums over images from which every figure follows; sums of processes may be added.

    For one label an image `confusion` [C, C] counts (true class, predicted class). For several, `table` [C, 3]
    counts true positives, false positives and false negatives of each class at probability 0.5.
    """

    def __init__(self, classes: int, activation: Literal["softmax", "sigmoid"]) -> None:
        self.activation = activation
        self.confusion = torch.zeros(classes, classes, dtype=torch.float64)
        self.table = torch.zeros(classes, 3, dtype=torch.float64)
        self.sums = torch.zeros(3, dtype=torch.float64)  # images, loss, top-5 hits

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Counts `logits` [B, C] against class shares or labels `targets` [B, C]."""
        logits, targets = logits.float().cpu(), targets.float().cpu()
        if self.activation == "softmax":
            truth, best = targets.argmax(1), logits.topk(min(5, logits.shape[1]), dim=1).indices
            pairs = truth * len(self.confusion) + best[:, 0]
            self.confusion += torch.bincount(pairs, minlength=self.confusion.numel()).view_as(self.confusion)
            loss = -(targets * logits.log_softmax(1)).sum()
            hits = (best == truth[:, None]).any(1).sum()
        else:
            said, true = logits > 0, targets > 0.5
            self.table += torch.stack([(said & true).sum(0), (said & ~true).sum(0), (~said & true).sum(0)], dim=1)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
            loss, hits = loss / logits.shape[1], (said == true).all(1).sum()
        self.sums += torch.tensor([len(logits), float(loss), float(hits)], dtype=torch.float64)

    def figures(self) -> dict[str, float]:
        """`score` (what the best model is chosen by), `loss`, and top-1 and top-5, or F1 and exact matches."""
        n = max(1.0, float(self.sums[0]))
        out = {"loss": float(self.sums[1]) / n}
        if self.activation == "softmax":
            top1 = float(self.confusion.diagonal().sum()) / n
            return {"score": top1, "top1": top1, "top5": float(self.sums[2]) / n, **out}
        f1 = float(_f1(self.table.sum(0)))
        return {"score": f1, "f1": f1, "exact": float(self.sums[2]) / n, **out}

    def per_class(self) -> list[float | None]:
        """Accuracy of each class (its F1 where images have several labels); None for a class not seen."""
        if self.activation == "sigmoid":
            seen = self.table[:, 0] + self.table[:, 2]
            values = _f1(self.table)
        else:
            seen = self.confusion.sum(1)
            values = self.confusion.diagonal() / seen.clamp_min(1)
        return [float(v) if s else None for v, s in zip(values, seen, strict=True)]


def _f1(table: Tensor) -> Tensor:
    hit, wrong, missed = table.unbind(-1)
    return 2 * hit / (2 * hit + wrong + missed).clamp_min(1)


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """Writes the rows of a run to `metrics.csv` in that folder."""
    columns = list(dict.fromkeys(key for row in history for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(folder / "metrics.csv", text.getvalue())


class MetricsLog:
    """The rows of a run in `metrics.csv`, and with a tracker of accelerate: in the folder, unless it is told otherwise.

    TensorBoard is left out where its package is missing. Raises VitedgeError for another tracker that is missing.
    """

    def __init__(self, folder: Path, tracker: str = "tensorboard") -> None:
        self.folder, self.written = folder, 0
        self.tracker = _tracker(folder, tracker)

    def write(self, history: list[dict[str, float]]) -> None:
        """Writes all rows to the CSV at once (a resumed run may have gone back) and the new ones to the tracker."""
        if not history:
            return
        write_history(self.folder, history)
        for row in history[self.written :] if self.tracker is not None else ():
            self.tracker.log({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))
        self.written = len(history)

    def close(self) -> None:
        """Ends the tracker's run."""
        if self.tracker is not None:
            self.tracker.finish()


def _tracker(folder: Path, name: str) -> Any:
    if name == "none":
        return None
    if importlib.util.find_spec(name) is None:
        if name == "tensorboard":
            return None
        raise VitedgeError(
            f"--tracker {name} needs the package '{name}'.", "", f"Install it: {install_command('trackers')}."
        )
    from accelerate import tracking

    if name == "mlflow":
        store = os.environ.get("MLFLOW_TRACKING_URI", f"file:{folder.resolve() / 'mlflow'}")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        importlib.import_module("mlflow").set_tracking_uri(store)  # accelerate does not pass its folder on
        tracker: Any = tracking.MLflowTracker("vitedge", logging_dir=store, run_name=folder.name)
    elif name == "wandb":
        tracker = tracking.WandBTracker("vitedge", dir=str(folder), name=folder.name)
    else:
        tracker = tracking.TensorBoardTracker("tensorboard", logging_dir=str(folder))
    tracker.start()
    return tracker
