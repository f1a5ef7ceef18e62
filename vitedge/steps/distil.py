"""The step that distils: the pruned model learns from the dense one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitedge.bundle import Bundle
from vitedge.reporter import Reporter
from vitedge.steps.source import SOURCE, need_pixels, read_preprocess
from vitedge.steps.transform import Outcome, Transformed, tell_fresh_start, transform_model
from vitedge.train.options import DistilOptions

if TYPE_CHECKING:
    from vitedge.vit.architecture import Architecture


def distil_model(bundle: Bundle, parent: str, options: DistilOptions, reporter: Reporter) -> Transformed:
    """The pruned model in `parent`, taught by the dense source on the calibration images."""
    pixels = need_pixels(bundle, "Distillation")

    def apply(model: Architecture, kept: Path) -> Outcome:
        from vitedge.train.distil import distill
        from vitedge.vit.checkpoint import read_model

        tell_fresh_start("distillation", kept, reporter)
        teacher = read_model(bundle.path(SOURCE))
        student, report = distill(model, teacher, pixels, read_preprocess(bundle), options, reporter, kept)
        return Outcome(student, report.to_dict(), report.tables("Distillation"), report.history)

    record = transform_model(
        bundle,
        "distill",
        parent,
        apply,
        options=options.model_dump(),
        modules=("vitedge.steps.distil",),
        order=15,
        also=(f"{SOURCE}/model.safetensors",),
    )
    return Transformed("steps/distill", True, record)
