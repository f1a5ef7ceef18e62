"""The absolute maximum of every float value of an ONNX graph on real images, by ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from vitedge.errors import VitedgeError

_PREFIX = "range/"
FP16_MAX = 65504.0


def float_values(model: onnx.ModelProto) -> list[str]:
    """The float32 values that nodes make, in the order of the data flow."""
    known = [*model.graph.value_info, *model.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in known}
    return [o for node in model.graph.node for o in node.output if types.get(o) == TensorProto.FLOAT]


def measure_ranges(
    model: onnx.ModelProto,
    pixels: np.ndarray,
    *,
    batch: int = 4,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Value -> largest magnitude on `pixels` uint8 [N, H, W, C]; infinity where a value overflowed or was
    NaN.

    Each value is reduced inside the graph, so that memory holds one small batch whatever the number of
    images. A graph with a static batch runs at that batch; the last images that don't fill one are left out.

    Raises:
        VitedgeError: no images, or images of another size than the graph's.
    """
    values = float_values(model)
    if len(pixels) == 0:
        raise VitedgeError(
            "The ranges of the activations can't be measured.",
            "There are no calibration images.",
            "Give a folder with photographs: vitedge compress --calib DIR.",
        )
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    if list(pixels.shape[1:]) != shape[1:]:
        raise VitedgeError(f"The images are {pixels.shape[1:]}, the graph takes {tuple(shape[1:])}.")
    step = shape[0] or min(batch, len(pixels))
    images = pixels if len(pixels) >= step else np.resize(pixels, (step, *pixels.shape[1:]))
    session = _session(_with_maxima(model, values), threads)
    largest = np.zeros(len(values))
    for start in range(0, len(images) - step + 1, step):
        maxima = session.run(
            None, {model.graph.input[0].name: np.ascontiguousarray(images[start : start + step])}
        )
        # NaN compares false with everything: turned into infinity, it can't hide.
        largest = np.maximum(
            largest, np.nan_to_num(np.array(maxima, np.float64), nan=math.inf, posinf=math.inf)
        )
        if progress is not None:
            progress(start + step, len(images))
    return dict(zip(values, largest.tolist(), strict=True))


def first_overflow(model: onnx.ModelProto, pixels: np.ndarray) -> tuple[str, float] | None:
    """The first value in the data flow that is beyond FP16 on these images, and its magnitude; None where none is."""
    ranges = measure_ranges(model, pixels)
    return next(((name, largest) for name, largest in ranges.items() if largest > FP16_MAX), None)


def _with_maxima(model: onnx.ModelProto, values: list[str]) -> onnx.ModelProto:
    """The graph with one scalar output for each value: its largest magnitude."""
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    del graph.output[:]
    for value in values:
        name = _PREFIX + value
        graph.node.append(helper.make_node("Abs", [value], [f"{name}/abs"]))
        graph.node.append(helper.make_node("ReduceMax", [f"{name}/abs"], [name], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
    out = onnx.ModelProto()
    out.CopyFrom(model)
    out.graph.CopyFrom(graph)
    return out


def _session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Fusions would take away the values in between.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
