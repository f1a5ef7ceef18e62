"""Knowledge distillation: the dense model teaches the pruned one, on pictures without labels."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.reporter import Reporter
from vitedge.train.augment import make_augment, make_mix
from vitedge.train.device import autocast
from vitedge.train.features import block_outputs
from vitedge.train.feed import Samples
from vitedge.train.loop import Row, fit, make_accelerator
from vitedge.train.losses import distillation, feature_error
from vitedge.train.options import AugmentOptions, DistilOptions, LoopOptions
from vitedge.train.pictures import Normalizer, Pixels
from vitedge.train.schedule import parameter_groups
from vitedge.vit.model import VisionTransformer


@dataclass(frozen=True)
class DistilReport:
    """How a distillation went. Agreement is the share of held-out pictures with the teacher's top-1.

    Attributes:
        agreement, kl: (before, after) on the held-out pictures; kl of the class shares, in nats.
        holdout, images, views: pictures held out, learnt from, and seen in all.
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

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    def tables(self) -> dict[str, Any]:
        """As the report renders it (see `vitedge.report`)."""
        columns = ["step", "epoch", "train_loss", "agreement", "kl"]
        return {
            "title": "Distillation",
            "columns": columns,
            "rows": [[row.get(name) for name in columns] for row in self.history],
            "note": f"On {self.holdout} held-out calibration pictures, against the dense model.",
            "step": "distil",
        }


class Teaching:
    """The task: logits by KL divergence, every block's output by its relative error.

    The student's blocks write into a residual stream of the same basis and width as the teacher's, so their
    outputs are compared as they are.
    """

    def __init__(
        self,
        student: VisionTransformer,
        teacher: VisionTransformer,
        held: Tensor,
        preprocess: Preprocess,
        options: DistilOptions,
        device: torch.device,
    ) -> None:
        self.student, self.teacher, self.options = student, teacher, options
        self.normalize, self.held, self.device = Normalizer(preprocess), held, device
        self.expected: Tensor | None = None  # the teacher's logits on `held`

    def loss(self, model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
        x, o = self.normalize(pixels), self.options
        if not o.feature_weight:
            with torch.no_grad():
                expected = self.teacher(x)
            return distillation(model(x), expected, o.temperature)
        with torch.no_grad(), block_outputs(self.teacher) as goal:
            expected = self.teacher(x)
        with block_outputs(self.student) as made:
            logits = model(x)
        apart = [feature_error(a, b) for a, b in zip(made, goal, strict=True)]
        return distillation(logits, expected, o.temperature) + o.feature_weight * torch.stack(apart).mean()

    def logits(self, model: nn.Module) -> Tensor:
        """Of the held-out pictures [N, classes], on the CPU."""
        parts = [model(self.normalize(p.to(self.device))).float().cpu() for p in self.held.split(32)]
        return torch.cat(parts)

    def evaluate(self, model: nn.Module) -> Row:
        if self.expected is None:
            self.expected = self.logits(self.teacher)
        ours = self.logits(model)
        agreement = float((ours.argmax(1) == self.expected.argmax(1)).float().mean())
        kl = float(distillation(ours, self.expected, 1.0))
        # Agreement decides; where it is the same, the divergence does.
        return {"score": agreement - 1e-4 * min(kl, 10.0), "agreement": agreement, "kl": kl}


def distill(
    student: VisionTransformer,
    teacher: VisionTransformer,
    pixels: np.ndarray,
    preprocess: Preprocess,
    options: DistilOptions,
    progress: Reporter | None = None,
) -> tuple[VisionTransformer, DistilReport]:
    """A student trained on `pixels` uint8 [N, crop, crop, 3] to answer as the teacher does.

    Hinton et al., arXiv 1503.02531; blocks' outputs as in FitNets, arXiv 1412.6550. Some pictures are held out;
    the weights with the best agreement on them are returned, and those that it came with where none are better.
    Neither argument is changed.

    Raises:
        VitedgeError: too few pictures, models of different widths, a diverging run or a full memory.
    """
    if len(pixels) < 16:
        raise VitedgeError(
            f"{len(pixels)} pictures are too few to distil on.", "", "Give at least 16; some hundred are better."
        )
    if student.config.width != teacher.config.width or len(student.blocks) != len(teacher.blocks):
        raise VitedgeError(
            "The student is no pruned form of the teacher.",
            f"Widths {student.config.width} and {teacher.config.width}, "
            f"{len(student.blocks)} and {len(teacher.blocks)} blocks.",
            "Distil the model that was pruned from this teacher.",
        )
    reporter = progress or Reporter()
    accelerator = make_accelerator()
    student = copy.deepcopy(student).float().requires_grad_(True)
    teacher = copy.deepcopy(teacher).eval().requires_grad_(False).to(accelerator.device)
    order = np.random.default_rng(options.seed).permutation(len(pixels))
    kept = min(options.holdout, len(pixels) // 4)
    held = torch.from_numpy(np.ascontiguousarray(pixels[order[:kept]])).permute(0, 3, 1, 2)
    augment = AugmentOptions(scale=options.crop_scale, jitter=0.2, mixup=options.distil_mixup)
    samples = Samples(
        # MixUp mixes targets too; nothing reads them.
        Pixels(pixels[order[kept:]], torch.zeros(len(pixels) - kept, 1)),
        augment=make_augment(augment, preprocess),
        mix=make_mix(augment),
        seed=options.seed,
    )
    loop = LoopOptions(
        epochs=options.epochs,
        minutes=options.minutes,
        batch=options.distil_batch,
        accumulate=options.distil_accumulate,
        lr=options.distil_lr,
        layer_decay=1.0,
        weight_decay=0.01,
        warmup=0.1,
        precision=options.precision,
        seed=options.seed,
    )
    task = Teaching(student, teacher, held, preprocess, options, accelerator.device)
    with torch.no_grad(), autocast(accelerator.device, options.precision):
        task.expected = task.logits(teacher)

    def tell(row: Row) -> None:
        reporter.info(
            f"step {row['step']:.0f}, epoch {row['epoch']:.1f}: agreement {row['agreement']:.3f}, "
            f"KL {row['kl']:.3f} on {kept} held-out pictures"
        )

    groups = parameter_groups(
        student, len(student.blocks), layer_decay=loop.layer_decay, weight_decay=loop.weight_decay
    )
    result = fit(student, task, samples, loop, groups, accelerator=accelerator, progress=tell)
    first = result.history[0]
    report = DistilReport(
        agreement=(first["agreement"], result.best["agreement"]),
        kl=(first["kl"], result.best["kl"]),
        holdout=kept,
        images=len(samples),
        views=result.images,
        steps=result.steps,
        seconds=result.seconds,
        best_step=int(result.best["step"]),
        history=result.history,
    )
    return student.cpu().eval(), report
