"""The step that prunes: a smaller model, fitted to what the dense one computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitedge.bundle import Bundle
from vitedge.data.sample import held_out
from vitedge.prune import PruneOptions
from vitedge.prune.price import latency_model
from vitedge.reporter import Reporter
from vitedge.steps.model import read_config
from vitedge.steps.source import float_batches, need_pixels, read_preprocess
from vitedge.steps.transform import Outcome, Transformed, transform_model
from vitedge.train.options import DistilOptions

if TYPE_CHECKING:
    from vitedge.vit.architecture import Architecture


def prune_model(
    bundle: Bundle, parent: str, options: PruneOptions, distil: DistilOptions, reporter: Reporter
) -> Transformed:
    """A smaller model (or one with zeros, where only sparsity is asked for) out of the model in `parent`."""
    chosen = options.model_dump()
    if options.recover == "distill":
        chosen |= {"held_out": [distil.holdout, distil.seed]}
    if options.prune_unit == "time":
        chosen |= {"latency": latency_model(read_config(bundle, parent), options).coefficients}
    pixels, own = pruning_sees(need_pixels(bundle, "Pruning"), options, distil)

    def apply(model: Architecture, _kept: Path) -> Outcome:
        from vitedge.prune import prune

        small, report = prune(model, float_batches(pixels, read_preprocess(bundle)), own, reporter)
        return Outcome(small, report.to_dict(), report.tables())

    record = transform_model(bundle, "prune", parent, apply, options=chosen, modules=("vitedge.steps.prune",), order=10)
    return Transformed("steps/prune", True, record)


def pruning_sees(pixels: np.ndarray, options: PruneOptions, distil: DistilOptions) -> tuple[np.ndarray, PruneOptions]:
    """The images and options that pruning itself gets where distillation follows.

    What distillation is going to be judged on is left alone: a model looks too good on what it was fitted to.
    """
    if options.recover != "distill":
        return pixels, options
    _, rest = held_out(len(pixels), distil.holdout, distil.seed)
    return pixels[np.sort(rest)], options.model_copy(update={"recover": "block"})
