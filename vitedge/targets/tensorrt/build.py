"""A bundle's graph to an engine in a folder, with everything that is known of it in the metadata."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from vitedge.errors import VitedgeError, missing_package
from vitedge.files import write_bytes, write_json, write_text
from vitedge.metrics import energies, finite, sqnr_of
from vitedge.onnx_graph.matcher import input_shape
from vitedge.prune.zeros import has_two_of_four
from vitedge.targets.base import BuildRequest, BuildResult
from vitedge.targets.tensorrt import api, timing, trtexec
from vitedge.targets.tensorrt.facts import board_facts, machine_facts
from vitedge.targets.tensorrt.layers import EngineLayer, engine_layers, summarize
from vitedge.targets.tensorrt.network import EngineSpec, build_engine
from vitedge.targets.tensorrt.options import Profile, TensorRTOptions, parse_profiles

ENGINE, GRAPH = "model.engine", "model.onnx"
# Images whose activations decide what stays in FP32.
RANGE_IMAGES = 64


def build(request: BuildRequest) -> BuildResult:
    """The engine by TensorRT's Python module, or by trtexec where there is only that. Raises VitedgeError."""
    options: TensorRTOptions = request.options
    graph = prepare_graph(request)
    spec = engine_spec(request.out / GRAPH, request.precision, options, graph)
    tool = trtexec.find_trtexec()
    try:
        trt = api.load()
    except VitedgeError:
        if tool is None:
            raise
        return _by_trtexec(request, spec, graph, tool)
    return _by_python(request, spec, graph, trt)


class AttentionFacts(TypedDict):
    """How many attention blocks TensorRT can fuse ("n/all"), why not the others, and their Softmax nodes."""

    fusable: str
    not_fusable: dict[str, str]
    softmaxes: list[str]


class Typing(TypedDict, total=False):
    """What was put into FP16, and what into INT8."""

    float16: dict[str, object]
    quantized: dict[str, object]


class GraphFacts(Typing):
    """What stands in the typed graph (JSON-able): `image_shape` is [H, W, 3], `batch` None where it is dynamic."""

    attention: AttentionFacts
    batch: int | None
    image_shape: list[int]


def prepare_graph(request: BuildRequest) -> GraphFacts:
    """Writes the typed graph to `out/model.onnx`, and says what is in it (JSON-able)."""
    try:
        import onnx
    except ImportError as error:
        raise missing_package("onnx", "compress", "Preparing a graph for TensorRT") from error
    from vitedge.targets.tensorrt.check import attentions, graph_problems

    model, typed = _typed(request)
    if problems := graph_problems(model):
        first = problems[0]
        raise VitedgeError(
            f"The graph has {len(problems)} nodes that TensorRT won't take.",
            f"'{first.node}' ({first.op}): {first.reason}",
            "Export again with `vitedge compress`.",
        )
    blocks = attentions(model)
    batch, *image_shape = input_shape(model)
    facts: GraphFacts = {
        **typed,
        "attention": {
            "fusable": f"{sum(not block.reason for block in blocks)}/{len(blocks)}",
            "not_fusable": {block.softmax: block.reason for block in blocks if block.reason},
            "softmaxes": [block.softmax for block in blocks],
        },
        "batch": batch if batch > 0 else None,
        "image_shape": image_shape,
    }
    onnx.save(model, str(request.out / GRAPH))
    write_json(request.out / "graph.json", facts)
    return facts


def _typed(request: BuildRequest) -> tuple[Any, Typing]:
    import onnx

    if request.precision == "fp32":
        return onnx.load(str(request.onnx)), {}
    if request.pixels is None or len(request.pixels) == 0:
        raise VitedgeError(
            f"An engine in {request.precision} needs calibration images.",
            "Which values fit into FP16 is measured on them.",
            "Run `vitedge compress --calib FOLDER` with a few dozen photographs.",
        )
    from vitedge.export.typed import typed_graph

    pixels = np.asarray(request.pixels[:RANGE_IMAGES])
    source = onnx.load(str(request.onnx))
    facts: Typing = {}
    if request.precision == "int8":
        from vitedge.targets.tensorrt.quantized import insert_quantizers

        source, facts["quantized"] = insert_quantizers(request, source)
    typed = typed_graph(source, pixels)
    facts["float16"] = typed.report()
    return typed.model, facts


def engine_spec(graph: Path, precision: str, options: TensorRTOptions, facts: GraphFacts) -> EngineSpec:
    """What to build. Raises VitedgeError where the options don't fit the graph."""
    profiles: tuple[Profile, ...] = ()
    if facts["batch"] is None:
        profiles = tuple(parse_profiles(options.dynamic_batch))
    elif options.dynamic_batch is not None:
        raise VitedgeError(
            f"--dynamic-batch does not fit this run: its graph has a batch of {facts['batch']}.",
            "",
            "Run `vitedge compress --dynamic-batch` first, then build again.",
        )
    if options.dla is not None and precision == "fp32":
        raise VitedgeError("A DLA runs FP16 and INT8 only.", "", "Leave --dla out, or build with --precision fp16.")
    import onnx

    return EngineSpec(
        onnx=graph,
        profiles=profiles,
        tf32=precision != "fp32",
        workspace_mib=options.workspace_mib,
        opt_level=options.opt_level,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        dla=options.dla,
        sparse=has_two_of_four(onnx.load(str(graph))),
    )


def _by_python(request: BuildRequest, spec: EngineSpec, graph: GraphFacts, trt: Any) -> BuildResult:
    options: TensorRTOptions = request.options
    machine = machine_facts(trt)
    if spec.hardware_compatible and "l4t" in machine:
        raise VitedgeError(
            "--hardware-compatible is not for Jetsons.",
            "Their GPUs are no discrete ones, which is what that compatibility is between.",
            "Leave it out, and build on the board that runs the engine.",
        )
    path = Path(options.timing_cache) if options.timing_cache else None
    asked_for = path is not None
    path = path or timing.default_path(machine["gpu"], machine["compute_capability"], machine["tensorrt"])
    identity = timing.cache_identity(machine)
    content = timing.read_cache(path, identity, asked_for=asked_for)
    log: list[str] = []
    logger = api.make_logger(trt, log.append)
    try:
        built = build_engine(trt, _with_cache(spec, content), logger, api.make_monitor(trt, _progress()))
    finally:
        write_text(request.out / "build.log", "\n".join(log) + "\n")
    timing.write_cache(path, built.timing_cache, identity)
    write_bytes(request.out / ENGINE, built.plan)
    layers = _inspect(trt, built.plan, logger)
    write_json(request.out / "layers.json", layers)
    summary = summarize(layers, graph["attention"]["softmaxes"])
    return _result(request, spec, graph, {"machine": machine, "engine": summary}, len(built.warnings))


def _by_trtexec(request: BuildRequest, spec: EngineSpec, graph: GraphFacts, tool: str) -> BuildResult:
    version = trtexec.trtexec_version(tool)
    if version is None:
        raise VitedgeError(f"'{tool}' does not say its version.", "", f"{api.ON_JETSON} {api.ON_PC}", exit_code=1)
    api.refuse_old(version)
    layers = request.out / "layers.json"
    line = trtexec.command(
        spec,
        request.out / ENGINE,
        tuple(graph["image_shape"]),
        tool=tool,
        version=api.version_tuple(version),
        layers=layers,
    )
    trtexec.build(line, request.out / "build.log")
    found = engine_layers(layers.read_text()) if layers.is_file() else []
    summary = summarize(found, graph["attention"]["softmaxes"])
    facts = {"machine": {"tensorrt": version, **_gpu(), **board_facts()}, "engine": summary, "built_by": line}
    return _result(request, spec, graph, facts | _compare(request, graph, tool), 0)


def _gpu() -> dict[str, str]:
    """The GPU's facts where CUDA's library is found."""
    from vitedge.targets.tensorrt import cuda

    try:
        return cuda.gpu_facts(cuda.load())
    except VitedgeError:
        return {}


def _compare(request: BuildRequest, graph: GraphFacts, tool: str) -> dict[str, object]:
    """The engine against the FP32 logits, through trtexec, where nothing else can run it."""
    if request.pixels is None or request.reference_logits is None:
        return {}
    n = graph["batch"] or 1
    pixels, reference = np.asarray(request.pixels[:n]), request.reference_logits[:n]
    if len(pixels) < n or len(reference) < n:
        return {}
    logits = trtexec.infer(tool, request.out / ENGINE, pixels, request.out, dynamic=graph["batch"] is None)
    power, noise = energies(reference, logits)
    if not np.isfinite(logits).all() or noise > 0.1 * power:
        raise VitedgeError(
            "The engine does not compute what the model computes.",
            f"On a calibration image its logits are off by {100 * (noise / power) ** 0.5:.0f} % of their size. "
            "TensorRT 10.3 is known to have miscompiled a ViT-B/16 in FP16 (NVIDIA/TensorRT issues 4723, 4742).",
            "Install a newer TensorRT, or build with --opt-level 2 or --precision fp32.",
            exit_code=1,
        )
    return {"trtexec_check": {"images": n, "sqnr_db": finite(sqnr_of(power, noise))}}


def _result(
    request: BuildRequest, spec: EngineSpec, graph: GraphFacts, facts: Mapping[str, Any], warned: int
) -> BuildResult:
    plan = (request.out / ENGINE).read_bytes()
    options: TensorRTOptions = request.options
    metadata = {
        **facts,
        "graph": graph,
        "engine_bytes": len(plan),
        "engine_sha256": hashlib.sha256(plan).hexdigest(),
        "version_compatible": spec.version_compatible,
        "hardware_compatible": spec.hardware_compatible,
        "cuda_graph": options.cuda_graph,
        "profiles": [[p.lo, p.best, p.hi] for p in spec.profiles],
    }
    warnings = []
    if warned:
        warnings.append(f"TensorRT gave {warned} warnings: see build.log.")
    fused, total = facts["engine"]["attention_fused"].split("/")
    if facts["engine"]["layers"] and fused != total:
        warnings.append(f"Only {fused} of {total} attention blocks were fused; layers.json shows the kernels.")
    for softmax, reason in graph["attention"]["not_fusable"].items():
        warnings.append(f"The attention of '{softmax}' can't be fused: {reason}.")
    return BuildResult(ENGINE, metadata, warnings)


def _with_cache(spec: EngineSpec, content: bytes) -> EngineSpec:
    from dataclasses import replace

    return replace(spec, timing_cache=content)


def _inspect(trt: Any, plan: bytes, logger: Any) -> list[EngineLayer]:
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise VitedgeError(
            "TensorRT can't read the engine that it has just built.", " ".join(logger.lines[-3:]), "", exit_code=1
        )
    inspector = engine.create_engine_inspector()
    return engine_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _progress() -> Any:
    """Shows phases on stderr: one line that changes on a terminal, a line a phase elsewhere."""
    seen: set[str] = set()

    def show(phase: str, step: int, of: int) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{phase[:70]} {step}/{of}", end="" if step < of else "\r\x1b[K", file=sys.stderr)
        elif phase not in seen:
            seen.add(phase)
            print(f"TensorRT: {phase}", file=sys.stderr)

    return show
