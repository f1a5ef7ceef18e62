"""A graph run on images in ONNX Runtime, to compare or to measure it. A target's runner is its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitedge.errors import VitedgeError

if TYPE_CHECKING:
    import onnxruntime


def open_session(graph: Path | bytes, *, threads: int = 0, optimize: bool = True) -> onnxruntime.InferenceSession:
    """A session on the CPU. graph: a file, or a serialised model; threads: 0 for as many as there are cores; optimize:
    whether nodes are fused."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_images(
    session: onnxruntime.InferenceSession,
    pixels: np.ndarray,
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[list[np.ndarray]]:
    """All outputs for each batch of `pixels` uint8 [N, H, W, C]; the last images that don't fill one are left out.

    A graph with a static batch runs at that one, on the same images again where there are too few. One that was
    rewritten for a compiler takes float [N, C, H, W].

    Raises:
        VitedgeError: images of another size than the graph's.
    """
    source = session.get_inputs()[0]
    floats = source.type == "tensor(float)"
    shape = tuple(source.shape[i] for i in ((2, 3, 1) if floats else (1, 2, 3)))
    if pixels.shape[1:] != shape:
        raise VitedgeError(f"The images are {pixels.shape[1:]}, the graph takes {shape}.")
    step = source.shape[0] if isinstance(source.shape[0], int) else max(min(batch, len(pixels)), 1)
    images = np.resize(pixels, (step, *shape)) if 0 < len(pixels) < step else pixels
    for start in range(0, len(images) - step + 1, step):
        x = images[start : start + step]
        if floats:
            x = x.transpose(0, 3, 1, 2).astype(np.float32)
        yield session.run(None, {source.name: np.ascontiguousarray(x)})
        if progress is not None:
            progress(start + step, len(images))
