"""Knowledge distillation: the dense model teaches the pruned one, on images without labels."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.reporter import Reporter
from vitedge.train.loop import make_accelerator
from vitedge.train.losses import feature_error
from vitedge.train.options import DistilOptions
from vitedge.train.schedule import parameter_groups
from vitedge.train.teaching import TeachingReport, TeachingRun, freeze_after_blocks
from vitedge.vit.architecture import Architecture


def distill(
    student: Architecture,
    teacher: Architecture,
    pixels: np.ndarray,
    preprocess: Preprocess,
    options: DistilOptions,
    progress: Reporter | None = None,
    state_folder: Path | None = None,
) -> tuple[Architecture, TeachingReport]:
    """A student trained on `pixels` uint8 [N, crop, crop, 3] to answer as the teacher does.

    Blocks' outputs as in FitNets, arXiv 1412.6550: the student's blocks write into a residual stream of the same basis
    and width as the teacher's, so they are compared as they are. With `logit_weight` the class shares too (Hinton et
    al., arXiv 1503.02531). Some images are held out; the weights that are best on them are returned, and those that
    it came with where none are better. Neither argument is changed.

    Args:
        state_folder: keeps the state of a run, and has that of one that was killed: it goes on as if it had never
            stopped.

    Raises:
        VitedgeError: too few images, models of different widths, a diverging run or a full memory.
    """
    check_pair(student, teacher)
    accelerator = make_accelerator()
    student = copy.deepcopy(student).float().requires_grad_(True)
    if not options.logit_weight:
        freeze_after_blocks(student)
    compare = [feature_error] * len(student.blocks)
    run = TeachingRun(student, teacher, pixels, preprocess, options, compare, accelerator, "distillation", state_folder)
    groups = parameter_groups(student, len(student.blocks), layer_decay=1.0, weight_decay=options.weight_decay)
    report = run.teach(groups, progress or Reporter())
    return student.cpu().eval(), report


def check_pair(student: Architecture, teacher: Architecture) -> None:
    """Raises VitedgeError where `student` is no form of `teacher`."""
    ours, theirs = ([block.width for block in model.encoder()] for model in (student, teacher))
    if ours != theirs:
        raise VitedgeError(
            "The student is no pruned form of the teacher.",
            f"Widths {student.config.width} and {teacher.config.width}, "
            f"{len(student.blocks)} and {len(teacher.blocks)} blocks.",
            "Distil the model that was pruned from this teacher.",
        )
