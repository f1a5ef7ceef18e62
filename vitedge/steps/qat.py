"""The step that trains the quantised model: a transform of the float model that also makes the scheme."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitedge.bundle import Bundle
from vitedge.data.preprocess import Preprocess
from vitedge.data.sample import held_out
from vitedge.quant.options import QuantOptions
from vitedge.quant.scheme import Scheme
from vitedge.reporter import Reporter
from vitedge.steps.scheme import make_scheme
from vitedge.steps.source import SOURCE, need_pixels, read_preprocess
from vitedge.steps.transform import (
    TRAINED,
    Outcome,
    Transformed,
    before_conditioning,
    tell_fresh_start,
    transform_model,
)
from vitedge.train.options import QatOptions

if TYPE_CHECKING:
    from vitedge.train.teaching import TeachingReport
    from vitedge.vit.architecture import Architecture


def qat_model(bundle: Bundle, parent: str, options: QatOptions, quant: QuantOptions, reporter: Reporter) -> Transformed:
    """`steps/qat/`: the model in `parent` with the weights that its integers have after training, and the scheme.

    The static scheme that training starts from is calibrated without the images that judge it.
    """
    pixels = need_pixels(bundle, "Training in INT8")
    before = before_conditioning(bundle, parent)

    def apply(model: Architecture, kept: Path) -> Outcome:
        from vitedge.vit.checkpoint import read_model

        tell_fresh_start("training in INT8", kept, reporter)
        teacher, reference = (read_model(bundle.path(folder)) for folder in (SOURCE, before))
        trained, learned, report = learn_scheme(
            model, teacher, reference, pixels, read_preprocess(bundle), options, quant, reporter, kept
        )
        table = report.tables("Quantisation-aware training")
        return Outcome(trained, report.to_dict(), table, report.history, learned)

    record = transform_model(
        bundle,
        "qat",
        parent,
        apply,
        options={"qat": options.model_dump(), "quantize": quant.model_dump()},
        modules=("vitedge.steps.qat",),
        order=25,
        also=(f"{SOURCE}/model.safetensors", f"{before}/model.safetensors"),
    )
    return Transformed(TRAINED, True, record)


def learn_scheme(
    model: Architecture,
    teacher: Architecture,
    reference: Architecture,
    pixels: np.ndarray,
    preprocess: Preprocess,
    options: QatOptions,
    quant: QuantOptions,
    reporter: Reporter,
    state_folder: Path | None = None,
) -> tuple[Architecture, Scheme, TeachingReport]:
    """The static scheme of `model`, trained: the float model with the integers' weights, the scheme, how it went.

    The static scheme is calibrated without the images that judge the training. `reference` is the model before
    conditioning, which `max_drop` is counted from.
    """
    from vitedge.train.qat import train_quantized

    _, rest = held_out(len(pixels), options.holdout, options.seed)
    scheme = make_scheme("static", model, pixels[np.sort(rest)], preprocess, quant, reporter, reference)
    for warning in scheme.facts.get("warnings", []):
        reporter.warn(warning)
    return train_quantized(model, scheme, teacher, pixels, preprocess, options, reporter, state_folder)
