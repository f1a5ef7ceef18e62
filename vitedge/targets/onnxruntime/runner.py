"""Runs an ONNX file in ONNX Runtime on the CPU. Needs neither torch nor onnx."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.errors import VitedgeError


def default_threads() -> int:
    """The processors that this process may use: the affinity mask, not the machine's count."""
    return len(os.sched_getaffinity(0))


def session_settings(threads: int | None = None) -> dict[str, Any]:
    """The session options that are used, as plain facts for metadata and reports."""
    return {
        "provider": "CPUExecutionProvider",
        "graph_optimization_level": "all",
        "execution_mode": "sequential",
        "intra_op_threads": threads or default_threads(),
        "inter_op_threads": 1,
    }


class OnnxRuntimeRunner:
    """One ONNX Runtime session. Batches larger than a static batch run in pieces; a short last one is padded."""

    device = "cpu"

    def __init__(self, path: Path, *, threads: int | None = None, model: bytes | None = None) -> None:
        """path: the ONNX file; model: its bytes where there is no file. Raises VitedgeError where it does not load."""
        import onnxruntime as ort

        settings = session_settings(threads)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = settings["intra_op_threads"]
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self.session = ort.InferenceSession(
                model if model is not None else str(path), options, providers=[settings["provider"]]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
            raise VitedgeError(
                f"ONNX Runtime {ort.__version__} can't load '{path}'.",
                str(error).strip().splitlines()[0],
                "Build it again with `vitedge build`, or install a newer onnxruntime.",
                exit_code=1,
            ) from error
        self.settings = settings
        first = self.session.get_inputs()[0]
        self.input_name = first.name
        self.batch = first.shape[0] if isinstance(first.shape[0], int) else None

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C] -> float32 logits [N, classes]."""
        size = self.batch
        if size is None or len(pixels) == size:
            return self.session.run(None, {self.input_name: pixels})[0]
        parts = []
        for start in range(0, len(pixels), size):
            piece = pixels[start : start + size]
            padded = np.concatenate([piece, np.repeat(piece[-1:], size - len(piece), axis=0)])
            parts.append(self.session.run(None, {self.input_name: padded})[0][: len(piece)])
        return np.concatenate(parts)

    def close(self) -> None:
        """Frees the session."""
        self.session = None  # type: ignore[assignment]
