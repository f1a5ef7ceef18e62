"""The target `onnxruntime`: probe, check, build, open."""

from __future__ import annotations

import platform
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from vitedge.errors import VitedgeError
from vitedge.targets.base import BuildRequest, BuildResult, CostTable, Probe, Problem, TargetOptions
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner, session_settings

_GRAPH = {"fp32": "float32", "int8": "int8"}


class OnnxRuntimeOptions(TargetOptions):
    """Nothing to choose yet: the session options are stated in the metadata."""


def saturation_warnings(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """A warning where the CPU's product of uint8 and int8 saturates: x86 without VNNI adds pairs in 16 bits."""
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.is_file():
        return []
    flags = set(next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "").split())
    if flags & {"avx512_vnni", "avx_vnni", "amx_int8"}:
        return []
    return [
        "this CPU has no VNNI, and its sums of two 8-bit products saturate: compress with `--weight-bits 7` "
        "if the artifact is to run here"
    ]


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
        facts: dict[str, Any] = {"onnxruntime": ort.__version__, "machine": platform.machine()}
        warnings: list[str] = []
        if request.precision == "int8":
            import onnx

            from vitedge.targets.onnxruntime.rewrites import apply

            model, facts["rewrites"] = apply(onnx.load(graph))
            onnx.save(model, request.out / "model.onnx")
            facts["operators"] = dict(Counter(node.op_type for node in model.graph.node))
            warnings = saturation_warnings()
        else:
            shutil.copyfile(graph, request.out / "model.onnx")
        return BuildResult("model.onnx", facts | {"session": session_settings()}, warnings)

    def open(self, artifact: Path, metadata: dict[str, Any], *, threads: int | None = None) -> OnnxRuntimeRunner:
        """A session on the artifact."""
        return OnnxRuntimeRunner(artifact, threads=threads)

    def cost(self, artifact: Path, metadata: dict[str, Any]) -> CostTable | None:
        """ONNX Runtime estimates no costs."""
        return None
