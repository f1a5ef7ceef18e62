"""The step that trains the quantised model: a transform of the float model that also makes the scheme."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitedge.bundle import Bundle
from vitedge.data.sample import held_out
from vitedge.quant.options import QuantOptions
from vitedge.reporter import Reporter
from vitedge.steps.source import SOURCE, float_batches, need_pixels, read_preprocess
from vitedge.steps.transform import Outcome, Transformed, before_conditioning, tell_fresh_start, transform_model
from vitedge.train.options import QatOptions

if TYPE_CHECKING:
    from vitedge.vit.architecture import Architecture

TRAINED = "steps/qat"


def qat_model(
    bundle: Bundle, parent: str, options: QatOptions, quant: QuantOptions, reporter: Reporter
) -> Transformed:
    """`steps/qat/`: the model in `parent` with the weights that its integers have after training, and the scheme.

    The static scheme that training starts from is calibrated without the images that judge it.
    """
    pixels = need_pixels(bundle, "Training in INT8")
    before = before_conditioning(bundle, parent)

    def apply(model: Architecture, kept: Path) -> Outcome:
        from vitedge.quant import calibrate
        from vitedge.train.qat import train_quantized
        from vitedge.vit.checkpoint import read_model

        tell_fresh_start("training in INT8", kept, reporter)
        preprocess, teacher = read_preprocess(bundle), read_model(bundle.path(SOURCE))
        _, rest = held_out(len(pixels), options.holdout, options.seed)
        shown = pixels[np.sort(rest)]
        with reporter.progress(f"quantising (static, {len(shown)} images): values and layers", None) as advance:
            scheme = calibrate(
                model,
                float_batches(shown, preprocess),
                quant,
                preprocess,
                lambda name: advance(1),
                reference=read_model(bundle.path(before)),
            )
        for warning in scheme.facts.get("warnings", []):
            reporter.warn(warning)
        trained, learned, report = train_quantized(model, scheme, teacher, pixels, preprocess, options, reporter, kept)
        table = report.tables("Quantisation-aware training")
        return Outcome(trained, report.to_dict(), table, report.history, learned)

    record = transform_model(
        bundle,
        "qat",
        parent,
        apply,
        options={"qat": options.model_dump(), "quantize": quant.model_dump()},
        rooms=("vitedge.train", "vitedge.quant"),
        order=25,
        also=(f"{SOURCE}/model.safetensors", f"{before}/model.safetensors"),
    )
    return Transformed(TRAINED, True, record)
