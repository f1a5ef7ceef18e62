"""The door to NVIDIA's TensorRT: how it is loaded, and under which names this package holds its objects.

One path serves TensorRT 10 and 11: a strongly typed network, whose precision stands in the ONNX graph.
Nothing that 11 removed is used (BuilderFlag.FP16 and its kin, calibrators, implicit precision).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from vitedge.errors import VitedgeError

# The class behind each variable of this package that holds a TensorRT object. The contract test reads the
# package's source by it, and holds every attribute, call and enum member against the vendor's own bindings.
OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "tensor": "ITensor",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "timing_cache": "ITimingCache",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
}
OLDEST = (10, 3)

ON_JETSON = (
    "On a Jetson with JetPack 6 or newer: sudo apt install tensorrt python3-libnvinfer, and make the virtual "
    "environment with --system-site-packages."
)
ON_PC = "On a PC with an NVIDIA GPU and driver: pip install tensorrt-cu12 (or tensorrt-cu13)."


def load() -> Any:
    """The module `tensorrt`, in a version that this package works with. Raises VitedgeError."""
    try:
        import tensorrt as trt
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "tensorrt":
            why = "The Python module 'tensorrt' is not installed."
        else:
            why = f"TensorRT's Python module does not load: {error}."
        raise VitedgeError("TensorRT is not available here.", why, f"{ON_JETSON} {ON_PC}") from error
    refuse_old(trt.__version__)
    return trt


def version_tuple(version: str) -> tuple[int, int]:
    """ "10.3.0" -> (10, 3)."""
    numbers = [*(int(n) for n in re.findall(r"\d+", version)[:2]), 0, 0]
    return numbers[0], numbers[1]


def refuse_old(version: str) -> None:
    """Raises VitedgeError where TensorRT is older than 10.3."""
    if version_tuple(version) >= OLDEST:
        return
    raise VitedgeError(
        f"TensorRT {version} is not supported.",
        "JetPack 5 ships TensorRT 8.5 and Python 3.8; vitedge builds the strongly typed networks of "
        "TensorRT 10 and 11, and needs Python 3.10.",
        "Flash JetPack 6 (TensorRT 10.3) or newer. On a Xavier, which has none, use --target onnxruntime.",
    )


def make_logger(trt: Any, sink: Callable[[str], None]) -> Any:
    """A `trt.ILogger` that hands each line to `sink` and keeps errors and warnings in `.lines`."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                self.lines.append(msg)
            if severity != trt.ILogger.VERBOSE:
                sink(f"{str(severity).rpartition('.')[2]}: {msg}")

    return Logger()


def make_monitor(trt: Any, show: Callable[[str, int, int], None]) -> Any:
    """A `trt.IProgressMonitor` that calls `show(phase, step, of)`. Control-C stops the build at the next
    step.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.stopped = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self._show(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._show(phase_name, step + 1)
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            self._show(phase_name, self.steps.get(phase_name, 0))

        def _show(self, phase_name: str, step: int) -> None:
            # An exception must not cross the vendor's C++ frames.
            try:
                show(phase_name, step, self.steps.get(phase_name, 0))
            except KeyboardInterrupt:
                self.stopped = True

    return Monitor()
