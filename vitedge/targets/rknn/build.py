"""From the bundle's float graph to `model.rknn`: rewrites, ranges, the float16 assignment, metadata."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vitedge.errors import VitedgeError
from vitedge.files import make_folder
from vitedge.metrics import Activation, agreement, cosine_drop, finite, sqnr_db
from vitedge.targets.base import BuildRequest, BuildResult
from vitedge.targets.rknn import cost
from vitedge.targets.rknn.calls import SIMULATOR, Compiler, config, with_level
from vitedge.targets.rknn.client import Worker
from vitedge.targets.rknn.dataset import split, write_dataset
from vitedge.targets.rknn.faults import (
    fallback_warnings,
    highest_level,
    not_float16,
    platform_warnings,
    previous_fallbacks,
)
from vitedge.targets.rknn.graph import constants, prepare, run_graph
from vitedge.targets.rknn.harm import expected_drop, noise_power
from vitedge.targets.rknn.options import RknnOptions
from vitedge.targets.rknn.rounding import noise_of_parts
from vitedge.targets.rknn.search import OUTSIDE, Trial, rank, search
from vitedge.targets.rknn.tensors import by_part, cycles_of_parts
from vitedge.targets.rknn.toolchain import Toolchain, adopt, find, home

ARTIFACT = "model.rknn"
BLOCKS = "blocks"
# Images on which the parts are ranked by the noise that each makes, and others for their ranges.
RANKING = 16
# An INT8 build with a smaller agreement may be wrong by more than rounding.
SUSPECT = 0.8
# Images that a level of optimisation is judged on.
LEVEL_IMAGES = 8
# What is tried where the ranges are chosen by measurement; mmse takes minutes where these take seconds.
ALGORITHMS = ("normal", "kl_divergence")


@dataclass(frozen=True)
class Quantisation:
    """How INT8 was chosen.

    Attributes:
        algorithm: of the ranges, in the toolkit's words. float16_parts: what is not quantised.
        agreement, sqnr_db: of the simulator with the float model, on `check_images` that nothing was fitted to.
        expected_drop, expected_drop_error: points of top-1 (of embeddings, percent of cosine), their standard error.
        trials: (algorithm, assignment) of all that were built.
    """

    algorithm: str
    preset: str
    float16_parts: tuple[str, ...]
    calibration_images: int
    check_images: int
    agreement: float
    sqnr_db: float | None
    expected_drop: float
    expected_drop_error: float | None
    trials: tuple[tuple[str, Trial], ...]

    def to_json(self) -> dict[str, object]:
        """As metadata holds it."""
        trials = [{"algorithm": name} | _facts(trial) for name, trial in self.trials]
        return {"dtype": "w8a8"} | asdict(self) | {"trials": trials}


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
        request.doing.ask = worker.doing
        graph = worker.folder / "model.onnx"
        shape, rewrites = prepare(request.onnx, graph, request.pixels)
        settings, level = config(options.attention, options.optimization_level), None
        compiler = Compiler(worker, graph, platform, shape[3], options.time_limit, settings)
        quantisation, warnings = _compile(compiler, request, options)
        if options.optimization_level is None and (level := _better_level(compiler, request, quantisation)) is not None:
            warnings.append(
                f"The compiler's own optimisation computes something else than FP32 (in its simulator): level {level} "
                "was taken, the highest at which float16 agrees (--optimization-level)."
            )
            compiler = compiler.of(graph, with_level(settings, level))
            quantisation, again = _compile(compiler, request, options)
            warnings += again
        if wrong := not_float16(compiler.cost(), compiler.float16):
            raise VitedgeError(
                f"{len(wrong)} tensors that were to stay in float16 are not.",
                f"The compiler's layer table has them in another type: {', '.join(wrong[:5])}.",
                "This is a fault of the compiler (rknn-toolkit2#10). Build with --preset full or --precision fp16, and "
                "please report it.",
                exit_code=1,
            )
        compiler.export(out / ARTIFACT)
        compiler.keep_simulator(out / SIMULATOR)
        table, said = compiler.cost(), compiler.log()
        memory = compiler.memory()
        blocks = _blocks(compiler, request, quantisation, out) if request.taps else {}
        chosen: dict[str, object] = quantisation.to_json() if quantisation else {"dtype": "float16"}
        metadata = (
            _metadata(toolchain, request, shape)
            | {
                "rewrites": rewrites,
                "quantisation": chosen if level is None else chosen | {"optimization_level": level},
                "cpu_fallbacks": cost.cpu_fallbacks(table),
                "memory": memory,
                "vendor_cycles": table.total_cycles,
                "kib_moved": sum(row.kib or 0 for row in table.rows),
                "op_targets": dict(Counter(row.device for row in table.rows)),
                "op_types": dict(Counter(row.dtype for row in table.rows)),
                "cost": cost.to_json(table),
            }
            | blocks
        )
    if options.compare_export:
        metadata["vendor_cycles_before"] = _cycles_before(toolchain, request, platform, shape[3])
    shutil.move(log, out / "build.log")
    adopt(toolchain)
    warnings += fallback_warnings(table, said, previous_fallbacks(request.previous))
    warnings += platform_warnings(platform, table)
    return BuildResult(ARTIFACT, metadata, warnings)


def _compile(compiler: Compiler, request: BuildRequest, options: RknnOptions) -> tuple[Quantisation | None, list[str]]:
    """Leaves the chosen model in the compiler; how it is quantised, None for float16, and warnings."""
    if request.precision == "fp16":
        compiler.build_float()
        return None, []
    return _quantise(compiler, request, options)


def _better_level(compiler: Compiler, request: BuildRequest, quantisation: Quantisation | None) -> int | None:
    """The highest level of optimisation below the compiler's own at which float16 agrees with FP32, where it does not
    at that one; else None. Rounding to INT8 is not at fault then, so it is asked of an INT8 build only that is bad."""
    if request.pixels is None or not len(request.pixels):
        return None
    if quantisation is not None and quantisation.agreement >= SUSPECT:
        return None
    pixels = request.pixels[:LEVEL_IMAGES]
    reference = run_graph(request.onnx, pixels)
    own = compiler.settings

    def agrees(level: int | None) -> bool:
        tried = compiler.of(compiler.graph, own if level is None else with_level(own, level))
        tried.build_float()
        return agreement(reference, tried.infer(pixels), request.activation) >= 1 - 1 / LEVEL_IMAGES

    if quantisation is None:
        if agreement(reference, compiler.infer(pixels), request.activation) >= 1 - 1 / LEVEL_IMAGES:
            return None
    elif agrees(None):
        compiler.again()
        return None
    if (level := highest_level(agrees)) is None:
        compiler.again()
    return level


def _quantise(compiler: Compiler, request: BuildRequest, options: RknnOptions) -> tuple[Quantisation, list[str]]:
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
    pixels = request.pixels[check]
    ranking = request.pixels[calibrate][:RANKING]
    judge = _Judge(compiler, pixels, run_graph(request.onnx, pixels), ranking, request.activation)
    full = options.preset == "full"
    algorithms = (options.algorithm,) if options.algorithm != "auto" else ALGORITHMS if full else ALGORITHMS[:1]
    results: list[tuple[str, Trial]] = []
    for algorithm in algorithms:
        judge.parts = by_part(compiler.quantize(dataset, algorithm), constants(compiler.graph))
        if full:
            trials = [judge(()), judge(OUTSIDE)]
        else:
            trials = search(judge, judge.parts, options.max_drop, judge.rank)
        results += [(algorithm, trial) for trial in trials]
    algorithm, chosen = max(results, key=lambda r: (r[1].agreement, r[1].sqnr_db)) if full else results[-1]
    if algorithm != algorithms[-1]:
        judge.parts = by_part(compiler.quantize(dataset, algorithm), constants(compiler.graph))
    if judge.last != chosen.parts or algorithm != algorithms[-1]:
        compiler.assemble(judge.tensors(chosen.parts))
    quantisation = Quantisation(
        algorithm=algorithm,
        preset=options.preset,
        float16_parts=chosen.parts,
        calibration_images=len(calibrate),
        check_images=len(check),
        agreement=chosen.agreement,
        sqnr_db=finite(chosen.sqnr_db),
        expected_drop=round(chosen.lost, 3),
        expected_drop_error=finite(chosen.error, 3),
        trials=tuple(dict.fromkeys(results)),
    )
    warnings = []
    if not full and not chosen.keeps(options.max_drop):
        unit = "percent of cosine" if request.activation == "none" else "points of top-1"
        warnings.append(
            f"No assignment is sure to lose at most {options.max_drop:g} {unit}: the best one is expected to "
            f"lose {chosen.lost:.2f}, with a standard error of {chosen.error:.2f}. Give a larger --max-drop, more "
            "calibration images, or --precision fp16."
        )
    return quantisation, warnings


def _facts(trial: Trial) -> dict[str, object]:
    """As metadata holds it: without the figures of single images."""
    found = {key: value for key, value in asdict(trial).items() if key != "power"}
    rounded = {"sqnr_db": trial.sqnr_db, "lost": trial.lost, "error": trial.error}
    return found | {name: finite(value, 4) for name, value in rounded.items()}


def _blocks(
    compiler: Compiler, request: BuildRequest, quantisation: Quantisation | None, out: Path
) -> dict[str, object]:
    """The same model with the outputs of its blocks, quantised and assembled alike, in `out/blocks/`."""
    import onnx

    from vitedge.onnx_graph.editor import with_outputs

    graph = compiler.worker.folder / "blocks.onnx"
    onnx.save(with_outputs(onnx.load(compiler.graph), request.taps), graph)
    with_taps = compiler.of(graph)
    if quantisation is None:
        with_taps.build_float()
    else:
        dataset = compiler.worker.folder / "dataset/dataset.txt"
        parts = by_part(with_taps.quantize(dataset, quantisation.algorithm), constants(graph))
        with_taps.assemble([tensor for part in quantisation.float16_parts for tensor in parts.get(part, ())])
    folder = out / BLOCKS
    folder.mkdir()
    with_taps.export(folder / ARTIFACT)
    with_taps.keep_simulator(folder / SIMULATOR)
    return {"blocks": {"artifact": f"{BLOCKS}/{ARTIFACT}", "taps": list(request.taps)}}


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

    def __init__(
        self,
        compiler: Compiler,
        pixels: np.ndarray,
        reference: np.ndarray,
        calibration: np.ndarray,
        activation: Activation,
    ) -> None:
        self.compiler, self.pixels, self.reference, self.calibration = compiler, pixels, reference, calibration
        self.activation = activation
        self.parts: dict[str, list[str]] = {}
        self.last: tuple[str, ...] | None = None

    def tensors(self, parts: Sequence[str]) -> list[str]:
        return [tensor for part in parts for tensor in self.parts.get(part, ())]

    def __call__(self, parts: Sequence[str]) -> Trial:
        self.compiler.assemble(self.tensors(parts))
        self.last = tuple(parts)
        logits, reference = self.compiler.infer(self.pixels), self.reference
        power = noise_power(reference, logits)
        lost, error = cosine_drop(reference, logits) if self.activation == "none" else expected_drop(reference, power)
        return Trial(
            self.last,
            self.compiler.cost().total_cycles or 0,
            agreement(reference, logits, self.activation),
            sqnr_db(reference, logits),
            lost,
            error,
            tuple(power.tolist()),
        )

    def rank(self, parts: Sequence[str]) -> list[str]:
        """The parts in the order in which they become float16; cycles are those of the last build."""
        tensors = {part: self.parts[part] for part in parts}
        noise = noise_of_parts(self.compiler.graph, tensors, self.pixels[:RANKING], self.calibration)
        return rank(noise, cycles_of_parts(self.compiler.cost()))


def _metadata(toolchain: Toolchain, request: BuildRequest, shape: list[int]) -> dict[str, object]:
    return {
        "toolkit": toolchain.version,
        "platform": request.platform,
        "precision": request.precision,
        "input": {"name": "pixels", "dtype": "uint8", "layout": "NHWC", "shape": shape},
        "npu_cores": request.options.npu_cores,
        "host_only": [SIMULATOR],
    }
