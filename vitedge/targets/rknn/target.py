"""The target `rknn`: Rockchip's NPUs. The compiler runs on a PC, the artifact on a board."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitedge.errors import VitedgeError
from vitedge.targets.base import BuildRequest, BuildResult, CostTable, Probe, Problem, Runner, Target, Toolchains
from vitedge.targets.rknn import board, toolchain
from vitedge.targets.rknn.faults import REFUSED
from vitedge.targets.rknn.options import RknnOptions
from vitedge.targets.rknn.versions import misfits

if TYPE_CHECKING:
    from vitedge.cost.model import LatencyModel

PLATFORMS = ("rk3588", "rk3576", "rk3568", "rk3566", "rk3562")


class RknnTarget(Target):
    """RK3588, RK3576, RK356x by rknn-toolkit2, its simulator, and rknn-toolkit-lite2 on the board."""

    name = "rknn"
    precisions = ("int8", "fp16")
    platforms = PLATFORMS
    refused = REFUSED
    presets: Mapping[str, str] = {"linear": "balanced", "full": "full"}
    sorts = False
    cycle_macs: Mapping[str, int] = {"int8": 1024, "fp16": 512}  # of an RK3588's core, in the compiler's table
    tiles = (32, 32)  # the NPU's INT8 products take channels by 32
    Options = RknnOptions
    block_outputs = True

    def probe(self) -> Probe:
        """On a board what its runtime says; on a PC whether the compiler and its simulator are there."""
        if (chip := board.platform_here()) is not None:
            return board.probe(self.name, chip)
        try:
            found = toolchain.find()
        except VitedgeError as error:
            return Probe(self.name, False, False, {}, f"{error.what} {error.why}".strip(), error.todo, "simulator")
        versions = {"rknn-toolkit2": found.version, "its python": found.python}
        return Probe(self.name, True, True, versions, device="simulator")

    def diagnose(self) -> Probe:
        """`probe`, and whether the compiler can be imported: it takes seconds."""
        found = self.probe()
        if found.can_build:
            try:
                toolchain.check(toolchain.find())
            except VitedgeError as error:
                reason = f"{error.what} {error.why}"
                return replace(found, can_build=False, can_run=False, reason=reason, fix=error.todo)
        return found

    def check(self, onnx_path: Path, precision: str, platform: str | None) -> list[Problem]:
        """The nodes that the compiler or the NPU won't take. Raises VitedgeError for an unknown platform or type."""
        from vitedge.targets.rknn.check import check_graph

        self._validate(precision, platform)
        return check_graph(onnx_path)

    def build(self, request: BuildRequest) -> BuildResult:
        """Rewrites, quantises, searches the float16 assignment and compiles; see build.py."""
        from vitedge.targets.rknn.build import build

        request = replace(request, platform=request.platform or PLATFORMS[0])
        if problems := self.check(request.onnx, request.precision, request.platform):
            shown = "; ".join(f"{p.op} '{p.node}': {p.reason}" for p in problems[:5])
            raise VitedgeError(
                f"The RKNN compiler won't take {len(problems)} of the graph's nodes.",
                f"{shown}.",
                "Export the model with `vitedge compress` (batch 1), and build from that run.",
            )
        return build(request)

    def open(self, artifact: Path, metadata: Mapping[str, Any], *, threads: int | None = None) -> Runner:
        """On a board the NPU; elsewhere the simulator. `threads` does not apply."""
        if (chip := board.platform_here()) is not None:
            return board.BoardRunner(artifact, metadata, chip)
        from vitedge.targets.rknn.simulator import SimulatorRunner

        return SimulatorRunner(artifact, metadata, toolchain.find())

    def cost(self, artifact: Path, metadata: Mapping[str, Any]) -> CostTable | None:
        """The compiler's own table, kept by the build."""
        from vitedge.targets.rknn.cost import from_json

        return from_json(metadata["cost"]) if "cost" in metadata else None

    def latency_model(
        self, precision: str, platform: str | None = None, profile: str | None = None
    ) -> LatencyModel | None:
        """From the table that `eval_perf` printed on a board, else the estimate from the published profile."""
        from vitedge.targets.rknn import latency

        if profile is None:
            return latency.published(precision, platform)
        return latency.from_board(profile, precision, platform, "the profile of a board (eval_perf with perf_debug)")

    def misfits(self, metadata: Mapping[str, Any], versions: Mapping[str, str]) -> list[str]:
        """What is known of the board's driver and runtime, and of another toolkit's artifacts."""
        return misfits(versions, str(metadata.get("toolkit", "")))

    def toolchains(self) -> Toolchains:
        """Those of rknn-toolkit2."""
        return toolchain

    def _validate(self, precision: str, platform: str | None) -> None:
        if platform is not None and platform not in PLATFORMS:
            raise VitedgeError(
                f"There is no RKNN platform '{platform}'.",
                self.refused.get(platform, ""),
                f"Choose one of: {', '.join(PLATFORMS)}.",
            )
        if precision not in self.precisions:
            raise VitedgeError(
                f"RKNN on {platform or PLATFORMS[0]} does not take the precision '{precision}'.",
                "Its NPU computes in INT8 (weights and activations) or float16.",
                f"Choose one of: {', '.join(self.precisions)}.",
            )
