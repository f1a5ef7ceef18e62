"""The target `openvino`: probe, check, build, open."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vitedge.errors import VitedgeError, install_command
from vitedge.host.cpu import SATURATION, saturates
from vitedge.targets.base import AttentionOptions, BuildRequest, BuildResult, Probe, Target
from vitedge.targets.openvino.runner import OpenVINORunner, computes, load, rest_precision


class OpenVINOOptions(AttentionOptions):
    """Options of the OpenVINO target."""

    rest: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="What an INT8 model computes outside its integer products; auto: bf16 where the CPU has it."
    )


class OpenVINOTarget(Target):
    """OpenVINO's CPU plugin."""

    name = "openvino"
    precisions = ("int8", "fp32", "bf16")
    tiles = (16, 16)  # an AVX512 register of float32
    Options = OpenVINOOptions

    def probe(self) -> Probe:
        """Whether openvino is installed; importing it would take a second."""
        if importlib.util.find_spec("openvino") is None:
            reason = "the package 'openvino' is not installed"
            return Probe(self.name, False, False, {}, reason, install_command("openvino"))
        versions = {"openvino": importlib.metadata.version("openvino"), "machine": platform.machine()}
        return Probe(self.name, True, True, versions)

    def build(self, request: BuildRequest) -> BuildResult:
        """OpenVINO's IR of that precision's graph. bf16 is computed from weights stored in 16 bits (float16)."""
        from vitedge.targets.openvino.graph import convert, uses_eight_bits

        ov = load()
        core = ov.Core()
        if request.precision == "bf16" and not computes(core, "bf16"):
            raise VitedgeError(
                "This CPU has no instructions for bf16.", "", "Build with --precision fp32 or int8.", exit_code=1
            )
        graph = request.graph("int8" if request.precision == "int8" else "float32")
        model, counts = convert(graph, request.precision)
        ov.save_model(model, str(request.out / "model.xml"), compress_to_fp16=request.precision == "bf16")
        floats = request.precision
        if floats == "int8":
            floats = rest_precision(core, request.options.rest)
        blocks: dict[str, object] = {}
        if request.taps:
            with_taps, _ = convert(graph, request.precision)
            with_taps.add_outputs(list(request.taps))
            (request.out / "blocks").mkdir()
            compress = request.precision == "bf16"
            ov.save_model(with_taps, str(request.out / "blocks/model.xml"), compress_to_fp16=compress)
            blocks = {"blocks": {"artifact": "blocks/model.xml", "taps": list(request.taps)}}
        runner = OpenVINORunner(request.out / "model.xml", floats)
        facts = {
            "openvino": ov.__version__.split("-")[0],
            "machine": platform.machine(),
            "floats": floats,
            "rest": request.options.rest,
            "rewrites": counts,
            "kernels": runner.kernels(),
            "session": runner.settings,
        }
        runner.close()
        warnings = []
        if request.precision == "int8" and saturates() and uses_eight_bits(graph):
            warnings.append(
                f"{SATURATION}, and OpenVINO has no other kernels for them: compress with `--weight-bits 7`, or build "
                "for another target"
            )
        return BuildResult("model.xml", facts | blocks, warnings)

    def weight_bits(self) -> int:
        """7 where the CPU saturates: see `SATURATION`."""
        return 7 if saturates() else 8

    def open(self, artifact: Path, metadata: Mapping[str, Any], *, threads: int | None = None) -> OpenVINORunner:
        """A compiled model. An INT8 artifact built with `rest` auto takes what the CPU has where it is opened."""
        floats = metadata["floats"]
        if metadata["precision"] == "int8":
            floats = rest_precision(load().Core(), metadata["rest"])
        return OpenVINORunner(artifact, floats, threads=threads)
