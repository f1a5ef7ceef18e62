"""From the bundle's float graph to `model.rknn`: rewrites, ranges, the float16 assignment, metadata."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vitedge.errors import VitedgeError
from vitedge.files import make_folder
from vitedge.metrics import agreement, finite, sqnr_db
from vitedge.targets.base import BuildRequest, BuildResult
from vitedge.targets.rknn import cost
from vitedge.targets.rknn.calls import SIMULATOR, Compiler
from vitedge.targets.rknn.client import Worker
from vitedge.targets.rknn.dataset import split, write_dataset
from vitedge.targets.rknn.graph import constants, prepare, run_graph
from vitedge.targets.rknn.options import RknnOptions
from vitedge.targets.rknn.search import OUTSIDE, Trial, search
from vitedge.targets.rknn.tensors import by_part
from vitedge.targets.rknn.toolchain import Toolchain, adopt, find, home

ARTIFACT = "model.rknn"
# Images on which the parts are ranked by SQNR: a stable order needs few.
RANKING = 8
# What is tried where the ranges are chosen by measurement; mmse takes minutes where these take seconds.
ALGORITHMS = ("normal", "kl_divergence")


def build(request: BuildRequest) -> BuildResult:
    """Builds the request. Raises VitedgeError with the compiler's own words."""
    options: RknnOptions = request.options
    toolchain = find(options.rknn_python)
    platform = request.platform or ""
    # The toolkit writes the graph several times, and holds the weights in float beside it.
    space = 8 * request.onnx.stat().st_size + 200 * 10**6
    # The worker works in a folder of its own; a failed build's `out` is removed, but its log stays.
    out = request.out.absolute()
    log = make_folder(home() / "logs") / f"rknn-build-{os.getpid()}.log"
    log.unlink(missing_ok=True)
    with Worker(toolchain, log=log, space=space) as worker:
        graph = worker.folder / "model.onnx"
        shape, rewrites = prepare(request.onnx, graph, request.pixels)
        compiler = Compiler(worker, graph, platform, shape[3], options.time_limit)
        if request.precision == "fp16":
            compiler.build_float()
            quantisation: dict[str, Any] = {"dtype": "float16"}
            warnings: list[str] = []
        else:
            quantisation, warnings = _quantise(compiler, request, options)
        compiler.export(out / ARTIFACT)
        compiler.keep_simulator(out / SIMULATOR)
        table = compiler.cost()
        metadata = _metadata(toolchain, request, shape) | {
            "rewrites": rewrites,
            "quantisation": quantisation,
            "cpu_fallbacks": cost.cpu_fallbacks(table),
            "memory": compiler.memory(),
            "vendor_cycles": table.total_cycles,
            "kib_moved": sum(row.kib or 0 for row in table.rows),
            "op_targets": _count(row.device for row in table.rows),
            "op_types": _count(row.dtype for row in table.rows),
            "cost": cost.to_json(table),
        }
    if options.compare_export:
        metadata["vendor_cycles_before"] = _cycles_before(toolchain, request, platform, shape[3])
    shutil.move(log, out / "build.log")
    adopt(toolchain)
    fallbacks = metadata["cpu_fallbacks"]
    if fallbacks:
        warnings.append(f"{len(fallbacks)} layers run on the CPU: {', '.join(fallbacks[:5])}.")
    return BuildResult(ARTIFACT, metadata, warnings)


def _quantise(compiler: Compiler, request: BuildRequest, options: RknnOptions) -> tuple[dict[str, Any], list[str]]:
    """Quantises and leaves the chosen model in the compiler; what was chosen, and warnings."""
    if request.pixels is None or not len(request.pixels):
        raise VitedgeError(
            "INT8 for RKNN needs calibration images, and the run has none.",
            "The compiler takes its ranges from them.",
            "Run `vitedge compress --calib FOLDER` first, or build with --precision fp16.",
        )
    calibrate, check = split(len(request.pixels), options.calib_images, options.check_images)
    dataset = write_dataset(request.pixels[calibrate], compiler.worker.folder / "dataset")
    # The float model of this very graph: what an exact compiler would give.
    judge = _Judge(compiler, request.pixels[check], run_graph(request.onnx, request.pixels[check]))
    full = options.preset == "full"
    algorithms = (options.algorithm,) if options.algorithm != "auto" else ALGORITHMS if full else ALGORITHMS[:1]
    results: list[tuple[str, Trial]] = []
    for algorithm in algorithms:
        judge.parts = by_part(compiler.quantize(dataset, algorithm), constants(compiler.graph))
        if full:
            trials = [judge((), False), judge(OUTSIDE, False)]
        else:
            trials = search(judge, judge.parts, 1 - options.max_drop / 100)
        results += [(algorithm, trial) for trial in trials]
    algorithm, chosen = max(results, key=lambda r: (r[1].agreement, r[1].sqnr_db)) if full else results[-1]
    if algorithm != algorithms[-1]:
        judge.parts = by_part(compiler.quantize(dataset, algorithm), constants(compiler.graph))
    if judge.last != chosen.parts or algorithm != algorithms[-1]:
        compiler.assemble(judge.tensors(chosen.parts))
    quantisation = {
        "dtype": "w8a8",
        "algorithm": algorithm,
        "preset": options.preset,
        "float16_parts": list(chosen.parts),
        "calibration_images": len(calibrate),
        "check_images": len(check),
        "agreement": chosen.agreement,
        "sqnr_db": finite(chosen.sqnr_db),
        "trials": [
            {"algorithm": name} | asdict(trial) | {"sqnr_db": finite(trial.sqnr_db)}
            for name, trial in dict.fromkeys(results)
        ],
    }
    warnings = []
    if not full and chosen.agreement < 1 - options.max_drop / 100:
        warnings.append(
            f"No assignment keeps the loss within {options.max_drop:g} % of the images: the best one loses "
            f"{100 * (1 - chosen.agreement):.1f} %. Give a larger --max-drop, or --precision fp16."
        )
    return quantisation, warnings


def _cycles_before(toolchain: Toolchain, request: BuildRequest, platform: str, channels: int) -> int | None:
    """The vendor's total for the graph without the rewrites (but for the input, which has to be float)."""
    with Worker(toolchain) as worker:
        graph = worker.folder / "before.onnx"
        prepare(request.onnx, graph, request.pixels, only=("pixels",))
        compiler = Compiler(worker, graph, platform, channels, request.options.time_limit)
        if request.precision == "fp16" or request.pixels is None:
            compiler.build_float()
        else:
            compiler.quantize(write_dataset(request.pixels[:2], worker.folder / "dataset"), "normal")
            compiler.assemble(())
        return compiler.cost().total_cycles


class _Judge:
    """Builds assignments and compares them with the float model on the check images."""

    def __init__(self, compiler: Compiler, pixels: np.ndarray, reference: np.ndarray) -> None:
        self.compiler, self.pixels, self.reference = compiler, pixels, reference
        self.parts: dict[str, list[str]] = {}
        self.last: tuple[str, ...] | None = None

    def tensors(self, parts: Sequence[str]) -> list[str]:
        return [tensor for part in parts for tensor in self.parts.get(part, ())]

    def __call__(self, parts: Sequence[str], few: bool) -> Trial:
        self.compiler.assemble(self.tensors(parts))
        self.last = tuple(parts)
        count = min(RANKING, len(self.pixels)) if few else len(self.pixels)
        logits, reference = self.compiler.infer(self.pixels[:count]), self.reference[:count]
        return Trial(
            self.last,
            self.compiler.cost().total_cycles or 0,
            agreement(reference, logits),
            sqnr_db(reference, logits),
        )


def _metadata(toolchain: Toolchain, request: BuildRequest, shape: list[int]) -> dict[str, Any]:
    return {
        "toolkit": toolchain.version,
        "platform": request.platform,
        "precision": request.precision,
        "input": {"name": "pixels", "dtype": "uint8", "layout": "NHWC", "shape": shape},
        "npu_cores": request.options.npu_cores,
        "host_only": [SIMULATOR],
    }


def _count(values: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts
