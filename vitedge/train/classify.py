"""The task of a classifier: labelled images in, cross-entropy (or BCE for several labels an image) out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitedge.data.dataset import Dataset
from vitedge.data.loader import iter_batches
from vitedge.data.preprocess import Preprocess
from vitedge.train.images import Normalizer, one_hot
from vitedge.train.losses import distillation, multi_label_loss, soft_cross_entropy
from vitedge.train.metrics import Tally
from vitedge.train.teacher import Teacher


class Holdout:
    """Images to evaluate on, exactly as `preprocess` gives them: batches uint8 [B, 3, H, W] with targets [B, C].

    Held in memory after the first pass where they fit into `memory_mib`.
    """

    def __init__(
        self, dataset: Dataset, preprocess: Preprocess, classes: int, batch: int = 64, memory_mib: int = 1024
    ) -> None:
        self.dataset, self.preprocess, self.batch = dataset, preprocess, batch
        self.targets = one_hot(dataset, classes)
        self.hold = len(dataset) * math.prod(preprocess.size) * preprocess.bands <= memory_mib * 2**20
        self.held: list[tuple[Tensor, Tensor]] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.held:
            yield from self.held
            return
        held = []
        for pixels, indices in iter_batches(self.dataset, self.preprocess, self.batch):
            batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), self.targets[indices]
            if self.hold:
                held.append(batch)
            yield batch
        self.held = held


class Classification:
    """What `loop.fit` teaches a classifier.

    Args:
        holdout: what the best weights are chosen by; processes share its batches.
        weights: of the classes [C], or None.
        trim: share of each batch, of the largest loss, that does not teach.
        teacher: gives a share `teacher_weight` of the loss; None for none.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        holdout: Holdout,
        accelerator: Any,
        *,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        smoothing: float = 0.0,
        weights: Tensor | None = None,
        trim: float = 0.0,
        teacher: Teacher | None = None,
        teacher_weight: float = 0.0,
    ) -> None:
        self.trim, self.teacher, self.teacher_weight = trim, teacher, teacher_weight
        self.normalize, self.holdout, self.accelerator = Normalizer(preprocess), holdout, accelerator
        self.activation, self.smoothing = activation, smoothing
        self.weights = None if weights is None else weights.to(accelerator.device)

    def loss(self, model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
        criterion = soft_cross_entropy if self.activation == "softmax" else multi_label_loss
        logits = model(self.normalize(pixels))
        loss = criterion(logits, targets, smoothing=self.smoothing, weights=self.weights, trim=self.trim)
        if self.teacher is None:
            return loss
        taught = distillation(logits, self.teacher(pixels), 1.0)
        return (1 - self.teacher_weight) * loss + self.teacher_weight * taught

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self.tally(model, self.holdout).figures()

    def tally(self, model: nn.Module, holdout: Holdout) -> Tally:
        """The counts of `model` on `holdout`, added up over the processes."""
        tally = Tally(holdout.targets.shape[1], self.activation)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        for number, (pixels, targets) in enumerate(holdout):
            if number % world == rank:
                tally.add(model(self.normalize(pixels.to(self.accelerator.device))), targets)
        if world > 1:
            for name in ("confusion", "table", "sums"):
                summed = self.accelerator.reduce(getattr(tally, name).to(self.accelerator.device), "sum")
                setattr(tally, name, summed.cpu())
        return tally
