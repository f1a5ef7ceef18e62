"""The quantisation scheme of a model in memory, whichever way it is found, and the graph that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitedge.data.preprocess import Preprocess
from vitedge.data.sample import held_out
from vitedge.errors import VitedgeError
from vitedge.quant.options import QuantOptions
from vitedge.quant.scheme import Scheme
from vitedge.reporter import Reporter
from vitedge.steps.source import float_batches
from vitedge.train.options import QatOptions

if TYPE_CHECKING:
    import onnx

    from vitedge.train.teaching import TeachingReport
    from vitedge.vit.architecture import Architecture


def make_scheme(
    mode: str,
    model: Architecture,
    pixels: np.ndarray | None,
    preprocess: Preprocess,
    options: QuantOptions,
    reporter: Reporter,
    reference: Architecture,
) -> Scheme:
    """The scheme of the float `model`, mode "static" or "dynamic"; `reference` is what `max_drop` is counted from."""
    from vitedge.quant import calibrate, round_weights

    batches = None if pixels is None else float_batches(pixels, preprocess)
    count = "no" if pixels is None else str(len(pixels))
    with reporter.progress(f"quantising ({mode}, {count} images): values and layers", None) as advance:
        if mode == "dynamic":
            return round_weights(model, batches, options, preprocess, lambda name: advance(1))
        if batches is None:
            raise VitedgeError("Static quantisation needs calibration images.", "", "Give some hundred images.")
        return calibrate(model, batches, options, preprocess, lambda name: advance(1), reference=reference)


def quantize_graph(mode: str, graph: onnx.ModelProto, scheme: Scheme) -> onnx.ModelProto:
    """The INT8 graph out of the float32 one."""
    from vitedge.quant import insert_qdq, quantize_dynamic

    return quantize_dynamic(graph, scheme) if mode == "dynamic" else insert_qdq(graph, scheme)


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
