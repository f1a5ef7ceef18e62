"""Runs an ONNX file in ONNX Runtime on the CPU. Needs neither torch nor onnx."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np

from vitedge.errors import VitedgeError
from vitedge.processors import checked_threads
from vitedge.targets.base import Runner
from vitedge.targets.pieces import all_in_pieces, in_pieces


class SessionSettings(TypedDict):
    """What of a session's options is not ONNX Runtime's default."""

    provider: str
    graph_optimization_level: str
    execution_mode: str
    intra_op_threads: int
    inter_op_threads: int
    dynamic_block_base: int
    disable_quant_qdq: bool


def session_settings(threads: int | None = None) -> SessionSettings:
    """The session options that are used, as plain facts for metadata and reports. Raises VitedgeError where more
    threads are asked for than there are processors."""
    return {
        "provider": "CPUExecutionProvider",
        "graph_optimization_level": "all",
        "execution_mode": "sequential",
        "intra_op_threads": checked_threads(threads),
        "inter_op_threads": 1,
        "dynamic_block_base": 4,
        "disable_quant_qdq": True,
    }


def config_entries(settings: SessionSettings) -> dict[str, str]:
    """Those of `session_settings` that ONNX Runtime takes as named entries."""
    return {
        # Smaller and smaller blocks of work: a thread that was held up does not hold up the others. Measured by
        # benchmarks/cpu_settings.py: 5 % on a ViT-Ti/16, nothing on a ViT-B/16.
        "session.dynamic_block_base": str(settings["dynamic_block_base"]),
        # The operators with integer results that ONNX Runtime makes of Q/DQ pairs (QLinearSoftmax, QLinearAdd) round
        # otherwise than the graph says, and are slower than what they replace. The products are integer ones without.
        "session.disable_quant_qdq": str(int(settings["disable_quant_qdq"])),
    }


class OnnxRuntimeRunner(Runner):
    """One ONNX Runtime session. Batches larger than a static batch run in pieces; a short last one is padded."""

    device = "cpu"

    def __init__(
        self, path: Path, *, threads: int | None = None, model: bytes | None = None, built_with: str | None = None
    ) -> None:
        """path: the ONNX file; model: its bytes where there is no file; built_with: the version of ONNX Runtime
        that it was written for. Raises VitedgeError where it does not load."""
        import onnxruntime as ort

        settings = session_settings(threads)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = settings["intra_op_threads"]
        options.inter_op_num_threads = 1
        for name, value in config_entries(settings).items():
            options.add_session_config_entry(name, value)
        options.log_severity_level = 3
        try:
            self.session = ort.InferenceSession(
                model if model is not None else str(path), options, providers=[settings["provider"]]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
            raise _cannot_load(path, error, ort.__version__, built_with) from error
        self.settings = settings
        first = self.session.get_inputs()[0]
        self.input_name = first.name
        self.batch = first.shape[0] if isinstance(first.shape[0], int) else None

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C] -> float32 logits [N, classes]."""
        return in_pieces(lambda x: self.session.run(None, {self.input_name: x})[0], self.batch, pixels)

    def outputs(self, pixels: np.ndarray) -> list[np.ndarray]:
        """All outputs of the graph, float32 [N, ...]."""
        return all_in_pieces(lambda x: self.session.run(None, {self.input_name: x}), self.batch, pixels)

    def close(self) -> None:
        """Frees the session."""
        self.session = None  # type: ignore[assignment]


def _cannot_load(path: Path, error: Exception, version: str, built_with: str | None) -> VitedgeError:
    """Names the version that knows the graph's operators, where this one is older."""
    reason = str(error).strip().splitlines()[0]
    if built_with and numbers(version) < numbers(built_with):
        return VitedgeError(
            f"ONNX Runtime {version} can't load '{path}', which was built with {built_with}.",
            reason,
            f"pip install 'onnxruntime>={built_with}', or build it again here with `vitedge build`.",
            exit_code=1,
        )
    return VitedgeError(
        f"ONNX Runtime {version} can't load '{path}'.",
        reason,
        "Build it again with `vitedge build`, or install a newer onnxruntime.",
        exit_code=1,
    )


def numbers(version: str) -> tuple[int, ...]:
    """ "1.22.1" -> (1, 22, 1)."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
