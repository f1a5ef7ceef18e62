"""A bundle's float32 graph to the typed FP16 graph that TensorRT builds from, measured and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import onnx

from vitedge.errors import VitedgeError
from vitedge.export.float16 import FLOAT16_MAX, Float16Options, Kept, to_float16
from vitedge.export.float16_rescale import ResidualScale, rescale_residual
from vitedge.onnx_graph.ranges import measure_ranges
from vitedge.onnx_graph.session import open_session, run_images

# Largest difference of the logits, relative to their range, that an exact rewrite may make.
EXACT = 1e-5


@dataclass(frozen=True)
class TypedGraph:
    """The typed graph and what is known of it.

    Attributes:
        model: strongly typed; input `pixels` uint8, output `logits` float32.
        kept: the nodes that stay in FP32, with the reason.
        scale: what was done to the residual stream.
        largest: largest magnitude of an FP16 value on the calibration images.
        images: how many calibration images were looked at.
    """

    model: onnx.ModelProto
    kept: list[Kept]
    scale: ResidualScale
    largest: float
    images: int

    def report(self) -> dict[str, object]:
        """JSON-able, for the metadata."""
        return {
            "images": self.images,
            "largest": self.largest,
            "share_of_float16_max": self.largest / FLOAT16_MAX,
            "residual": asdict(self.scale),
            "float32": [asdict(k) for k in self.kept],
        }


def typed_graph(
    model: onnx.ModelProto,
    pixels: np.ndarray,
    options: Float16Options | None = None,
    *,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TypedGraph:
    """The typed FP16 graph of a float32 (or Q/DQ) graph, by ranges on `pixels` uint8 [N, H, W, C].

    First the exact rewrite (the residual stream scaled by a power of two where it does not fit), whose logits
    are compared with the original's; then the types. Raises VitedgeError where the graph itself makes
    infinities or NaN, or the rewrite changes its logits.
    """
    options = options or Float16Options()
    ranges = measure_ranges(model, pixels, threads=threads, progress=progress)
    if broken := [value for value, largest in ranges.items() if not np.isfinite(largest)]:
        raise VitedgeError(
            "The float32 model makes infinities or NaN.",
            f"First at '{broken[0]}', on the calibration images.",
            "Check the checkpoint and its preprocessing; nothing downstream can fix this.",
        )
    scaled, new_ranges, scale = rescale_residual(model, ranges, options.limit)
    if scale.exponent:
        _check_equal(model, scaled, pixels, threads)
    typed = to_float16(scaled, new_ranges, options)
    return TypedGraph(typed.model, typed.kept, scale, typed.largest, len(pixels))


def _check_equal(before: onnx.ModelProto, after: onnx.ModelProto, pixels: np.ndarray, threads: int) -> None:
    reference, logits = (_logits(m, pixels[:8], threads) for m in (before, after))
    error = float(np.abs(logits - reference).max() / max(float(np.ptp(reference)), 1e-30))
    if not error <= EXACT:
        raise VitedgeError(
            "Scaling the residual stream changed the model.",
            f"The logits differ by {error:.2g} of their range, where {EXACT:.0g} is allowed.",
            "Please report this model: the graph has a form that vitedge does not know.",
            exit_code=1,
        )


def _logits(model: onnx.ModelProto, pixels: np.ndarray, threads: int) -> np.ndarray:
    session = open_session(model.SerializeToString(), threads=threads)
    return np.concatenate([outputs[0] for outputs in run_images(session, pixels, len(pixels))])
