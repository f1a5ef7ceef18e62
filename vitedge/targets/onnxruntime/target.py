"""The target `onnxruntime`: probe, check, build, open."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

from vitedge.errors import VitedgeError
from vitedge.targets.base import BuildRequest, BuildResult, CostTable, Probe, Problem, TargetOptions
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner, session_settings

_GRAPH = {"fp32": "float32", "int8": "int8"}


class OnnxRuntimeOptions(TargetOptions):
    """Nothing to choose yet: the session options are stated in the metadata."""


class OnnxRuntimeTarget:
    """ONNX Runtime's CPU provider."""

    name = "onnxruntime"
    precisions = ("fp32", "int8")
    platforms: tuple[str, ...] = ()
    Options = OnnxRuntimeOptions

    def probe(self) -> Probe:
        """onnxruntime is part of the core, so it is missing only where the installation is broken."""
        try:
            import onnxruntime as ort
        except ImportError as error:
            return Probe(self.name, False, False, {}, str(error), "pip install onnxruntime")
        return Probe(self.name, True, True, {"onnxruntime": ort.__version__, "machine": platform.machine()})

    def check(self, onnx_path: Path, precision: str, platform: str | None) -> list[Problem]:
        """ONNX Runtime takes every operator that vitedge writes; loading the graph is the check."""
        OnnxRuntimeRunner(onnx_path).close()
        return []

    def build(self, request: BuildRequest) -> BuildResult:
        """The graph of that precision as it stands, with the session options that it is to run with."""
        import onnxruntime as ort

        graph = request.onnx_by_precision.get(_GRAPH[request.precision])
        if graph is None:
            raise VitedgeError(
                f"The run has no {_GRAPH[request.precision]} graph.",
                "It was compressed without quantisation.",
                "Run `vitedge compress --quantize static` (or dynamic) first.",
            )
        shutil.copyfile(graph, request.out / "model.onnx")
        return BuildResult(
            "model.onnx",
            {"onnxruntime": ort.__version__, "machine": platform.machine(), "session": session_settings()},
        )

    def open(self, artifact: Path, metadata: dict[str, Any], *, threads: int | None = None) -> OnnxRuntimeRunner:
        """A session on the artifact."""
        return OnnxRuntimeRunner(artifact, threads=threads)

    def cost(self, artifact: Path, metadata: dict[str, Any]) -> CostTable | None:
        """ONNX Runtime estimates no costs."""
        return None
