"""The quantisation scheme of a model in memory, whichever way it is found, and the graph that it makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.quant.options import QuantOptions
from vitedge.quant.scheme import Scheme
from vitedge.reporter import Reporter
from vitedge.steps.source import float_batches

if TYPE_CHECKING:
    import onnx

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
        if mode == "dynamic" and options.stem == "int8" and model.stem is not None:
            raise VitedgeError(
                "Dynamic quantisation leaves the convolutional stem in float.",
                "quantize.stem asks for int8, whose scales are found on calibration images.",
                "Take --quantize static, or leave quantize.stem out.",
            )
        if mode == "dynamic":
            return round_weights(model, batches, options, preprocess, lambda name: advance(1))
        if batches is None:
            raise VitedgeError("Static quantisation needs calibration images.", "", "Give some hundred images.")
        return calibrate(model, batches, options, preprocess, lambda name: advance(1), reference=reference)


def quantize_graph(mode: str, graph: onnx.ModelProto, scheme: Scheme) -> onnx.ModelProto:
    """The INT8 graph out of the float32 one."""
    from vitedge.quant import insert_qdq, quantize_dynamic

    return quantize_dynamic(graph, scheme) if mode == "dynamic" else insert_qdq(graph, scheme)
