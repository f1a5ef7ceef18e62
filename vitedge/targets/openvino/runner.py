"""Runs an OpenVINO IR on the CPU. Needs neither torch nor onnx."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.errors import VitedgeError, missing_package
from vitedge.processors import checked_threads
from vitedge.targets.base import Runner
from vitedge.targets.pieces import all_in_pieces, in_pieces

# Our name of a type -> OpenVINO's, as a precision hint and as the CPU's capability.
HINTS = {"fp32": ("f32", "FP32"), "bf16": ("bf16", "BF16")}


def load() -> Any:
    """The module `openvino`. Raises VitedgeError where it is missing."""
    try:
        import openvino
    except ImportError as error:
        raise missing_package("openvino", "openvino", "The target 'openvino'") from error
    return openvino


def computes(core: Any, precision: str) -> bool:
    """Whether OpenVINO has kernels of that type for this CPU; it emulates none."""
    return HINTS[precision][1] in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def rest_precision(core: Any, wanted: str) -> str:
    """What an INT8 model's float operators are computed in: `auto` is bf16 where this CPU has it, else fp32."""
    if wanted != "auto":
        return wanted
    return "bf16" if computes(core, "bf16") else "fp32"


class OpenVINORunner(Runner):
    """One compiled model. Batches larger than a static batch run in pieces; a short last one is padded."""

    device = "cpu"

    def __init__(self, path: Path, precision: str, *, threads: int | None = None) -> None:
        """path: `model.xml`, with `model.bin` beside it; precision: of the float operators.

        Raises VitedgeError where OpenVINO is missing, does not load the file, or lacks that precision here.
        """
        ov = load()
        core = ov.Core()
        if not computes(core, precision):
            raise VitedgeError(
                f"This CPU has no instructions for {precision}, which '{path}' was built for.",
                f"OpenVINO finds: {', '.join(core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'))}.",
                "Build it for this CPU with `vitedge build --target openvino --precision fp32` or int8.",
                exit_code=1,
            )
        self.settings = {
            "device": "CPU",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": checked_threads(threads),
            "INFERENCE_PRECISION_HINT": HINTS[precision][0],
        }
        try:
            options = {name: value for name, value in self.settings.items() if name != "device"}
            self.model = core.compile_model(str(path), "CPU", options)
        except RuntimeError as error:
            raise VitedgeError(
                f"OpenVINO {ov.__version__} can't load '{path}'.",
                _reason(error),
                "Build it again with `vitedge build --target openvino`, or install a newer openvino.",
                exit_code=1,
            ) from error
        batch = self.model.input(0).partial_shape[0]
        self.batch = batch.get_length() if batch.is_static else None
        self.request = self.model.create_infer_request()

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C] -> float32 logits [N, classes]."""
        return in_pieces(self._run, self.batch, pixels)

    def outputs(self, pixels: np.ndarray) -> list[np.ndarray]:
        """All outputs of the model, float32 [N, ...]."""

        def run(x: np.ndarray) -> list[np.ndarray]:
            found = self.request.infer([x])
            return [np.array(found[at]) for at in range(len(self.model.outputs))]

        return all_in_pieces(run, self.batch, pixels)

    def kernels(self) -> dict[str, int]:
        """What the compiled model runs: OpenVINO's kind of layer and its type -> how many."""
        counts: Counter[str] = Counter()
        for node in self.model.get_runtime_model().get_ordered_ops():
            facts = node.get_rt_info()
            kind, dtype = (facts[key].astype(str) for key in ("layerType", "runtimePrecision"))
            if kind not in ("Const", "Input", "Output"):
                counts[f"{kind} {dtype}"] += 1
        return dict(sorted(counts.items()))

    def close(self) -> None:
        """Frees the model."""
        self.request = self.model = None

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        # The result lies in the request's own memory, which the next call writes to.
        return np.array(self.request.infer([pixels], share_inputs=True, share_outputs=True)[0])


def _reason(error: Exception) -> str:
    """The last line that OpenVINO writes: those before it name its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else ""
