"""From a typed ONNX file to a serialised engine: a strongly typed network, the same calls on TensorRT 10 and
11.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitedge.errors import VitedgeError
from vitedge.targets.tensorrt.options import Profile

# What TensorRT says when a build ran out of memory, in 10 and 11.
_MEMORY = ("out of memory", "OutOfMemory", "Insufficient memory", "insufficient workspace", "cudaMalloc")


@dataclass(frozen=True)
class EngineSpec:
    """What is built.

    Attributes:
        onnx: the typed graph.
        profiles: optimisation profiles; empty for a graph with a static batch.
        tf32: whether FP32 products may round their factors to TF32. Not where FP32 was asked for.
        workspace_mib, opt_level: None for TensorRT's own choice.
        dla: DLA core, or None.
        sparse: whether weights have the 2:4 pattern that sparse tensor cores take.
        timing_cache: content of a timing cache; empty for a new one.
    """

    onnx: Path
    profiles: tuple[Profile, ...] = ()
    tf32: bool = True
    workspace_mib: int | None = None
    opt_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla: int | None = None
    sparse: bool = False
    timing_cache: bytes = b""


@dataclass(frozen=True)
class BuiltEngine:
    """The serialised engine, the timing cache after the build, and the warnings of the builder."""

    plan: bytes
    timing_cache: bytes
    warnings: list[str]


def build_engine(
    trt: Any, spec: EngineSpec, logger: Any, monitor: Any = None, note: Callable[[str], None] = lambda _: None
) -> BuiltEngine:
    """Builds the engine. Raises VitedgeError with the parser's or the builder's own words."""
    builder = trt.Builder(logger)
    # Always on in 11, where the flag is still taken; in 10 it makes the graph's types the law.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, spec.onnx, logger)
    config = builder.create_builder_config()
    _configure(trt, builder, config, spec)
    for one in spec.profiles:
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            shape = list(tensor.shape)[1:]
            profile.set_shape(tensor.name, [one.lo, *shape], [one.best, *shape], [one.hi, *shape])
        if config.add_optimization_profile(profile) < 0:
            raise VitedgeError(f"TensorRT refuses the batch sizes {one}.", _last(logger), "", exit_code=1)
    timing_cache = config.create_timing_cache(spec.timing_cache)
    if not config.set_timing_cache(timing_cache, False):
        raise VitedgeError(
            "The timing cache does not fit this machine.",
            _last(logger) or "It was made by another version of TensorRT, or on another GPU.",
            "Name another file with --timing-cache, or delete this one.",
        )
    if monitor is not None:
        config.progress_monitor = monitor
    note("building")
    plan = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.stopped:
        raise KeyboardInterrupt
    if plan is None:
        raise _build_error(logger)
    return BuiltEngine(bytes(plan), bytes(timing_cache.serialize()), list(logger.lines))


def _parse(trt: Any, network: Any, path: Path, logger: Any) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(path)):
        return
    found = []
    for index in range(parser.num_errors):
        parser_error = parser.get_error(index)
        found.append(f"{parser_error.node_operator()} '{parser_error.node_name()}': {parser_error.desc()}")
    raise VitedgeError(
        f"TensorRT {trt.__version__} does not take this graph.",
        "; ".join(found) or _last(logger) or "The parser gave no reason.",
        "vitedge's own graphs need TensorRT 10.3 or newer; for another graph, see the operators that "
        "onnx-tensorrt lists for this version.",
        exit_code=1,
    )


def _configure(trt: Any, builder: Any, config: Any, spec: EngineSpec) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if spec.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace_mib << 20)
    if spec.opt_level is not None:
        config.builder_optimization_level = spec.opt_level
    if not spec.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if spec.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if spec.sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if spec.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if spec.dla is not None:
        if spec.dla >= builder.num_DLA_cores:
            raise VitedgeError(
                f"There is no DLA core {spec.dla} here.",
                f"TensorRT {trt.__version__} finds {builder.num_DLA_cores}: Orin NX and AGX Orin have two, Orin "
                "Nano and PCs none, and not every version of TensorRT serves them.",
                "Leave --dla out. A ViT gains little from a DLA, whose strength is convolutions.",
            )
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = spec.dla
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _build_error(logger: Any) -> VitedgeError:
    words = _last(logger)
    if any(sign in line for line in logger.lines for sign in _MEMORY):
        return VitedgeError(
            "TensorRT ran out of memory while it built the engine.",
            words,
            "Set --workspace-mib 512 (or less) and --opt-level 2, stop other programs; on a Jetson add swap "
            "(sudo fallocate -l 8G /swapfile) and stop the desktop (sudo systemctl isolate multi-user.target).",
            exit_code=1,
        )
    return VitedgeError("TensorRT could not build the engine.", words, "", exit_code=1)


def _last(logger: Any) -> str:
    return " ".join(logger.lines[-3:])
