"""The target `onnxruntime`: probe, check, build, open."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from vitedge.documents import Json
from vitedge.host.cpu import SATURATION, saturates
from vitedge.targets.base import AttentionOptions, BuildRequest, BuildResult, Probe, Problem, Target
from vitedge.targets.onnxruntime.rewrites import AttentionChoice, GroupsChoice, WeightsChoice
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner, numbers, session_settings

_GRAPH = {"fp32": "float32", "int8": "int8"}
_EXACT = "build again here with `--weight-type auto`"


class OnnxRuntimeOptions(AttentionOptions):
    """How the graph is written for ONNX Runtime. What is `auto` is timed on the machine that builds."""

    attention: AttentionChoice = Field(
        "auto",
        description="packed: q, k, v and attention in one operator; heads: MultiHeadAttention; parts: as exported; "
        "auto: the fastest here.",
    )
    mlp_groups: GroupsChoice = Field(
        "auto",
        description="joined: groups of MLP units in one product where they can be; apart; auto: the faster here.",
    )
    weight_type: WeightsChoice = Field(
        "auto",
        description="Integer weights as int8, or as uint8 with the zero point 128: the same values, exact also where a "
        "CPU's product of uint8 and int8 saturates; auto: uint8 on x86 without VNNI, int8 elsewhere.",
    )


class OnnxRuntimeTarget(Target):
    """ONNX Runtime's CPU provider."""

    name = "onnxruntime"
    precisions = ("fp32", "int8")
    tiles = (16, 16)  # an AVX512 register of float32
    Options = OnnxRuntimeOptions
    block_outputs = True

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
        """The graph of that precision, rewritten for ONNX Runtime's kernels, in the form that is fastest here."""
        import onnxruntime as ort

        from vitedge.targets.onnxruntime.tune import write_blocks, write_fastest

        graph = request.graph(_GRAPH[request.precision])
        facts: Json = {"onnxruntime": ort.__version__, "machine": platform.machine()}
        options = request.options
        if options.attends:  # the probabilities are read: they can't be inside a fused operator
            options = options.model_copy(update={"attention": "parts"})
        facts |= write_fastest(graph, request.out / "model.onnx", options, request.pixels)
        if request.taps:
            facts["blocks"] = write_blocks(request.out, request.taps)
        wrong = request.precision == "int8" and facts["form"]["weights"] == "int8" and saturates()
        warnings = [f"{SATURATION}: {_EXACT}"] if wrong else []
        return BuildResult("model.onnx", facts | {"session": session_settings()}, warnings)

    def misfits(self, metadata: Mapping[str, Any], versions: Mapping[str, str]) -> list[str]:
        """An older ONNX Runtime may lack operators, or compute some of them otherwise."""
        built, here = str(metadata.get("onnxruntime", "")), versions.get("onnxruntime", "")
        if numbers(here) < numbers(built):
            return [f"It was built with ONNX Runtime {built}, and this is {here}."]
        return [f"{SATURATION}: {_EXACT}"] if _saturated(metadata) else []

    def open(self, artifact: Path, metadata: Mapping[str, Any], *, threads: int | None = None) -> OnnxRuntimeRunner:
        """A session on the artifact."""
        return OnnxRuntimeRunner(artifact, threads=threads, built_with=metadata.get("onnxruntime"))

    def settled(self, options: Any, metadata: Json) -> OnnxRuntimeOptions:
        """The form that the build found to be the fastest."""
        form = metadata["form"]
        return OnnxRuntimeOptions(
            attention=form["attention"], mlp_groups=form["groups"], weight_type=form.get("weights", "int8")
        )


def _saturated(metadata: Mapping[str, Any]) -> bool:
    """Whether the artifact was built for a CPU with VNNI, and this one has none."""
    integers = metadata.get("precision") == "int8"
    return integers and metadata.get("form", {}).get("weights", "int8") == "int8" and saturates()
