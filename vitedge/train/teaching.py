"""A float model teaches another form of itself, on images without labels: the task of distillation and of QAT."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitedge import metrics
from vitedge.data.preprocess import Preprocess
from vitedge.data.sample import held_out
from vitedge.errors import VitedgeError
from vitedge.reporter import Reporter
from vitedge.tables import Table
from vitedge.tokens.modules import following, goals
from vitedge.train.augment import make_augment, make_mix
from vitedge.train.features import block_outputs
from vitedge.train.feed import Samples
from vitedge.train.images import Normalizer, Pixels
from vitedge.train.loop import Row, fit
from vitedge.train.losses import output_distance
from vitedge.train.options import AugmentOptions, TeachingOptions
from vitedge.train.schedule import ParameterGroups
from vitedge.vit.architecture import Architecture
from vitedge.vit.names import layer_index

# Student's and teacher's output of one block [B, N, C] -> their distance.
Compare = Callable[[Tensor, Tensor], Tensor]
FEWEST = 16
JITTER = 0.2


@dataclass(frozen=True)
class TeachingReport:
    """How it went. Agreement is the share of held-out images with the teacher's top-1; of embeddings, with its nearest
    other image.

    Attributes:
        agreement, kl: (before, after) on the held-out images; kl of the class shares, in nats; of
            embeddings 1 - cosine.
        holdout, images, views: images held out, learnt from, and seen in all.
        steps, seconds, best_step: of the run, and where the kept weights come from.
        history: one row an evaluation.
    """

    agreement: tuple[float, float]
    kl: tuple[float, float]
    holdout: int
    images: int
    views: int
    steps: int
    seconds: float
    best_step: int
    history: list[Row]

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return asdict(self)

    def tables(self, title: str) -> list[Table]:
        """The course of the training."""
        keys = ["step", "epoch", "train_loss", "agreement", "kl"]
        columns = ["step", "epoch", "training loss", "agreement", "KL (nats)"]
        rows = [[row.get(key) for key in keys] for row in self.history]
        note = f"On {self.holdout} held-out calibration images, against the dense float model."
        return [Table(title, columns, rows, note, decimals={"step": 0, "epoch": 2})]


class Teaching:
    """The task: logits by KL divergence, embeddings by cosine, every block's output by its own of `compare`.

    Args:
        held: images uint8 [n, 3, H, W] that a model is judged by.
    """

    def __init__(
        self,
        student: Architecture,
        teacher: Architecture,
        held: Tensor,
        preprocess: Preprocess,
        options: TeachingOptions,
        compare: Sequence[Compare],
        device: torch.device,
    ) -> None:
        self.student, self.teacher, self.options, self.compare = student, teacher, options, compare
        self.activation = teacher.config.activation
        self.normalize, self.held, self.device = Normalizer(preprocess), held, device
        self.expected: Tensor | None = None  # the teacher's logits on `held`
        self.first: Row | None = None

    def loss(self, model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
        x, o = self.normalize(pixels), self.options
        with block_outputs(self.student) as made:
            logits = model(x)
        with torch.no_grad(), block_outputs(self.teacher) as outputs, following(self.teacher, self.student):
            expected = self.teacher(x)
            goal = goals(outputs, self.teacher, self.student)
        losses = []
        if o.logit_weight:
            losses.append(o.logit_weight * output_distance(logits, expected, o.temperature, self.activation))
        if o.feature_weight:
            pairs = zip(self.student.encoder(), self.compare, made, goal, strict=True)
            apart = [compare(a[..., : block.width], b) for block, compare, a, b in pairs]
            losses.append(o.feature_weight * torch.stack(apart).mean())
        return torch.stack(losses).sum()

    @torch.no_grad()
    def logits(self, model: nn.Module) -> Tensor:
        """Of the held-out images [N, classes], on the CPU."""
        parts = [model(self.normalize(p.to(self.device))).float().cpu() for p in self.held.split(32)]
        return torch.cat(parts)

    def evaluate(self, model: nn.Module) -> Row:
        # In float32, whatever the loop computes in: a few thousandths of agreement decide.
        with torch.autocast(self.device.type, enabled=False):
            if self.expected is None:
                self.expected = self.logits(self.teacher)
            ours = self.logits(model)
        same = metrics.agreement(self.expected, ours, self.activation)
        kl = metrics.kl(self.expected, ours, self.activation)
        row = {"agreement": same, "kl": kl}
        self.first = self.first or row
        # Among weights that agree no less than those at the start, the divergence decides: on a hundred images
        # agreement goes by whole points, and up and down by chance.
        return {"score": -kl - 1e3 * max(0.0, self.first["agreement"] - same), **row}


class TeachingRun:
    """Images, task and loop of a model that is taught.

    Args:
        student: learns in place. teacher: is not changed.
        pixels: uint8 [N, crop, crop, 3]; those that `data.sample.held_out` draws judge, the others teach.
        purpose: what the errors call it.
        state_folder: where the state of a run that may be killed is kept; None keeps none.

    Raises VitedgeError where there are too few images.
    """

    def __init__(
        self,
        student: Architecture,
        teacher: Architecture,
        pixels: np.ndarray,
        preprocess: Preprocess,
        options: TeachingOptions,
        compare: Sequence[Compare],
        accelerator: Any,
        purpose: str,
        state_folder: Path | None = None,
    ) -> None:
        if len(pixels) < FEWEST:
            raise VitedgeError(
                f"{len(pixels)} images are too few for {purpose}.",
                "",
                f"Give at least {FEWEST}; some hundred are better.",
            )
        self.student, self.options, self.accelerator = student, options, accelerator
        self.state_folder = state_folder
        held, rest = held_out(len(pixels), options.holdout, options.seed)
        self.held = torch.from_numpy(np.ascontiguousarray(pixels[np.sort(held)])).permute(0, 3, 1, 2)
        self.samples = make_samples(np.ascontiguousarray(pixels[np.sort(rest)]), options, preprocess)
        teacher = copy.deepcopy(teacher).eval().requires_grad_(False).to(accelerator.device)
        self.teacher = teacher
        self.task = Teaching(student, teacher, self.held, preprocess, options, compare, accelerator.device)
        self.before: list[Row] = []
        self.start: dict[str, Tensor] = {}

    def identity(self) -> dict[str, object]:
        """What a resumed run must share; more time changes nothing of the steps that were done."""
        options = self.options.model_dump(exclude={"minutes"})
        return {"arch": self.student.config.to_dict(), "training": options, "images": len(self.samples)}

    def judge(self) -> Row:
        """Figures of the student as it stands before the loop; they stand first in the report.

        Where the loop comes to nothing better than the first of them, the student is put back to it.
        """
        row = {"step": 0.0, "epoch": 0.0, **self.task.evaluate(self.student.eval().to(self.accelerator.device))}
        if not self.before:
            self.start = copy.deepcopy(self.student.state_dict())
        self.before.append(row)
        return row

    def teach(self, groups: ParameterGroups, reporter: Reporter, minutes: float | None = None) -> TeachingReport:
        """Trains the parameters in `groups`, and leaves the best weights in the student.

        minutes: what is left of the options' time.
        """
        count = len(self.held)
        state_file = self.state_folder and self.state_folder / "loop.pt"
        if state_file is not None and state_file.is_file() and self.task.first is None:
            # Scores count from the student as it came, which the resumed loop does not evaluate again.
            self.task.evaluate(self.student.eval().to(self.accelerator.device))

        def tell(row: Row) -> None:
            reporter.info(
                f"step {row['step']:.0f}, epoch {row['epoch']:.1f}: agreement {row['agreement']:.3f}, "
                f"KL {row['kl']:.4f} on {count} held-out images"
            )

        loop = self.options.loop()
        if minutes is not None:
            loop = loop.model_copy(update={"minutes": minutes})
        result = fit(
            self.student,
            self.task,
            self.samples,
            loop,
            groups,
            accelerator=self.accelerator,
            state_file=state_file,
            resume=True,
            identity=self.identity(),
            section=self.options.section,
            progress=tell,
            reporter=reporter,
        )
        history, best = [*self.before, *result.history], result.best
        first = history[0]
        if first["score"] > best["score"]:
            self.student.load_state_dict(self.start)
            best = first
        return TeachingReport(
            agreement=(first["agreement"], best["agreement"]),
            kl=(first["kl"], best["kl"]),
            holdout=count,
            images=len(self.samples),
            views=result.images,
            steps=result.steps,
            seconds=result.seconds,
            best_step=int(best["step"]),
            history=history,
        )


def freeze_after_blocks(model: Architecture) -> None:
    """Final norm and head don't learn: without the logits' loss they get no gradient.

    DistributedDataParallel stops where a parameter that should learn gets none.
    """
    depth = len(model.blocks)
    for name, parameter in model.named_parameters():
        if layer_index(name, depth) > depth:
            parameter.requires_grad_(False)


def make_samples(pixels: np.ndarray, options: TeachingOptions, preprocess: Preprocess) -> Samples:
    """Images uint8 [N, H, W, 3] with the random changes that the options ask for."""
    augment = AugmentOptions(
        scale=options.crop_scale, jitter=JITTER, mixup=options.mixup, cutmix=options.cutmix
    )
    return Samples(
        # MixUp mixes targets too; nothing reads them.
        Pixels(pixels, torch.zeros(len(pixels), 1)),
        augment=make_augment(augment, preprocess),
        mix=make_mix(augment),
        seed=options.seed,
    )
