"""The target `tensorrt`: probe, check, build, open."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitedge.errors import VitedgeError
from vitedge.targets.base import BuildRequest, BuildResult, Probe, Problem, Runner, Target
from vitedge.targets.tensorrt import api, trtexec
from vitedge.targets.tensorrt.options import TensorRTOptions


class TensorRTTarget(Target):
    """NVIDIA's TensorRT 10.3 to 11: Jetsons with JetPack 6 or newer, PCs with an NVIDIA GPU."""

    name = "tensorrt"
    precisions = ("fp16", "int8", "fp32")
    tiles = (32, 16)  # tensor cores take 32 INT8 values at once; fused attention begins at heads of 16
    Options = TensorRTOptions

    def probe(self) -> Probe:
        """Whether TensorRT, CUDA and a GPU are here; trtexec alone can build but not run."""
        from vitedge.targets.tensorrt.facts import board_facts

        # Not the power mode: an engine need not be built again for another one.
        versions = {key: value for key, value in board_facts().items() if key != "power_mode"}
        try:
            trt = api.load()
            versions["tensorrt"] = trt.__version__
        except VitedgeError as error:
            tool = trtexec.find_trtexec()
            version = trtexec.trtexec_version(tool) if tool else None
            if version and api.version_tuple(version) >= api.OLDEST:
                why = f"trtexec {version} is here and can build, but running needs TensorRT's Python module."
                return Probe(self.name, True, False, versions | {"trtexec": version}, why, error.todo, "gpu")
            why = " ".join(part for part in (error.what, error.why) if part)
            return Probe(self.name, False, False, versions, why, error.todo, "gpu")
        try:
            from vitedge.targets.tensorrt import cuda

            versions |= cuda.gpu_facts(cuda.load())
        except VitedgeError as error:
            return Probe(self.name, False, False, versions, f"{error.what} {error.why}", error.todo, "gpu")
        return Probe(self.name, True, True, versions, device="gpu")

    def check(self, onnx_path: Path, precision: str, platform: str | None) -> list[Problem]:
        """What TensorRT's parser won't take in this graph."""
        from vitedge.targets.tensorrt.check import check_file

        return check_file(onnx_path)

    def preview(self, request_for: Callable[[], BuildRequest], options: TensorRTOptions) -> str | None:
        """The trtexec command of this build where it is asked for; the typed graph is written then."""
        if not options.print_trtexec:
            return None
        request = request_for()
        from vitedge.targets.tensorrt.build import ENGINE, GRAPH, engine_spec, prepare_graph

        graph = prepare_graph(request)
        spec = engine_spec(request.out / GRAPH, request.precision, request.options, graph)
        tool = trtexec.find_trtexec()
        version = trtexec.trtexec_version(tool) if tool else None
        line = trtexec.command(
            spec,
            request.out / ENGINE,
            tuple(graph["image_shape"]),
            tool=tool or "trtexec",
            version=api.version_tuple(version or "10.3"),
            timing_cache=Path(request.options.timing_cache) if request.options.timing_cache else None,
        )
        return shlex.join(line)

    def build(self, request: BuildRequest) -> BuildResult:
        """The engine, its log, its layers and what it is bound to."""
        from vitedge.targets.tensorrt.build import build

        return build(request)

    def open(self, artifact: Path, metadata: Mapping[str, Any], *, threads: int | None = None) -> Runner:
        """The engine on GPU 0; refused where it was built for another GPU or version."""
        from vitedge.targets.tensorrt.runner import open_engine

        return open_engine(artifact, metadata)
