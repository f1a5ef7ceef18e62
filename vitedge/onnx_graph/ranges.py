"""The ranges of a graph's float values on real images, by ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitedge.errors import VitedgeError
from vitedge.onnx_graph.editor import GraphEditor
from vitedge.onnx_graph.matcher import value_shapes, value_types
from vitedge.onnx_graph.session import open_session, run_images

if TYPE_CHECKING:
    import onnx

FLOAT16_MAX = 65504.0


def float_values(model: onnx.ModelProto) -> list[str]:
    """The float32 values that nodes make, in the order of the data flow."""
    from onnx import TensorProto

    types = value_types(model)
    return [o for node in model.graph.node for o in node.output if types.get(o) == TensorProto.FLOAT]


def value_ranges(
    model: onnx.ModelProto,
    values: Sequence[str],
    pixels: np.ndarray,
    *,
    batch: int = 4,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[float, float]]:
    """Value -> its least and its greatest number on `pixels` uint8 [N, H, W, C], 0 among them; infinite where it
    overflowed or was NaN.

    Each value is reduced inside the graph, so that memory holds one small batch whatever the number of images. How
    images make batches, and what is raised for a wrong size: see `session.run_images`.
    """
    shapes = value_shapes(model)
    # Of no numbers, such as the prefix tokens of a model without any, there is no least one: runtimes fail at it.
    some = [value for value in values if 0 not in shapes.get(value, ())]
    nothing = dict.fromkeys(values, (0.0, 0.0))
    if not some:
        return nothing
    session = open_session(_with_extremes(model, some).SerializeToString(), threads=threads, optimize=False)
    low, high = np.zeros(len(some)), np.zeros(len(some))
    for found in run_images(session, pixels, batch, progress):
        least, greatest = np.array(found, np.float64).reshape(2, -1)
        # NaN compares false with everything: turned into infinity, it can't hide.
        low = np.minimum(low, np.where(np.isnan(least), -math.inf, least))
        high = np.maximum(high, np.where(np.isnan(greatest), math.inf, greatest))
    return nothing | dict(zip(some, zip(low.tolist(), high.tolist(), strict=True), strict=True))


def measure_ranges(
    model: onnx.ModelProto,
    pixels: np.ndarray,
    *,
    batch: int = 4,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Float value -> its largest magnitude on `pixels` uint8 [N, H, W, C], by `value_ranges`.

    Raises:
        VitedgeError: no images, or images of another size than the graph's.
    """
    if len(pixels) == 0:
        raise VitedgeError(
            "The ranges of the activations can't be measured.",
            "There are no calibration images.",
            "Give a folder with photographs: vitedge compress --calib DIR.",
        )
    ranges = value_ranges(model, float_values(model), pixels, batch=batch, threads=threads, progress=progress)
    return {value: max(high, -low) for value, (low, high) in ranges.items()}


def first_overflow(model: onnx.ModelProto, pixels: np.ndarray) -> tuple[str, float] | None:
    """The first value in the data flow that is beyond FP16 on these images, and its magnitude; None where none is."""
    ranges = measure_ranges(model, pixels)
    return next(((name, largest) for name, largest in ranges.items() if largest > FLOAT16_MAX), None)


def _with_extremes(model: onnx.ModelProto, values: Sequence[str]) -> onnx.ModelProto:
    """The graph with scalar outputs alone: the least number of each value, then the greatest of each."""
    from onnx import TensorProto

    g = GraphEditor(model)
    del g.model.graph.output[:]
    for op in ("ReduceMin", "ReduceMax"):
        for value in values:
            name = g.op(op, [value], g.unique(f"{value}/{op}"), keepdims=0)
            g.output(name, TensorProto.FLOAT, [])
    return g.finish()
