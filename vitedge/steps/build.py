"""The step that builds a target's artifact and compares it with FP32 before it is accepted."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitedge import __version__
from vitedge.bench.from_bundle import find_activation, model_bytes
from vitedge.bundle import Bundle, StepRecord
from vitedge.cost import store
from vitedge.documents import Json
from vitedge.errors import VitedgeError
from vitedge.files import make_folder, write_json
from vitedge.manifest import Facts
from vitedge.metrics import Activation, fidelity, finite
from vitedge.reporter import Reporter
from vitedge.steps.export import CONSTANT, CONSTANT_LOGITS, FLOAT32, LOGITS, REFERENCE, check_images, run_graph
from vitedge.steps.model import read_config
from vitedge.steps.source import read_pixels, read_preprocess
from vitedge.tables import to_json
from vitedge.targets import get, names
from vitedge.targets.base import BuildRequest, Target, TargetOptions
from vitedge.targets.cost_table import summarize

# Lowest share of images with the FP32 model's class that a build is accepted with, by precision.
MIN_AGREEMENT = {"fp32": 1.0, "fp16": 0.98, "bf16": 0.95, "int8": 0.85}
# The vendor's estimate of an artifact, for the report and `inspect`.
COSTS = "analysis/80-{}.json"
_GRAPHS = ("float32", "int8", "reference")


def folder_name(target: str, precision: str, platform: str | None, *, attends: bool = False) -> str:
    """Name of an artifact's folder below `build/`."""
    return "-".join(part for part in (target, precision, platform, "attention" if attends else "") if part)


def build_artifact(
    bundle: Bundle,
    target: Target,
    precision: str,
    platform: str | None,
    options: TargetOptions,
    reporter: Reporter,
) -> StepRecord:
    """`build/<target>-<precision>[-<platform>]/` with the artifact and metadata.json.

    The artifact's logits are compared with FP32's on calibration images; one that is outside its tolerance
    is marked so in the metadata and in the facts ("accepted": False). Raises VitedgeError where the build
    fails.
    """
    _check_request(target, precision, platform, options)
    name = folder_name(target.name, precision, platform, attends=options.attends)
    graphs = [f"onnx/{g}.onnx" for g in (*_GRAPHS, "constant") if bundle.has(f"onnx/{g}.onnx")]
    extra = [p for p in ("calib/pixels.npy", LOGITS, CONSTANT_LOGITS) if bundle.has(p)]
    extra += bundle.files("quant/")

    def work(folder: Path) -> Facts:
        out = folder / "build" / name
        out.mkdir(parents=True)
        images, kind = check_images(read_pixels(bundle), read_preprocess(bundle), bundle)
        graph, logits = float_graph(bundle, target)
        reference = np.load(bundle.verified(logits))
        float32 = bundle.verified(graph)
        problems = target.check(float32, precision, platform)
        if problems:
            first = problems[0]
            raise VitedgeError(
                f"The graph has {len(problems)} nodes that the target '{target.name}' won't take.",
                f"'{first.node}' ({first.op}): {first.reason}",
                "Export again with `vitedge compress`, or choose another target.",
            )
        request = _request(bundle, target, out, precision, platform, options)
        request = replace(request, taps=_taps(float32, options), previous=_previous(bundle, name))
        with reporter.busy(f"building {name}") as doing, _attending(bundle, request) as prepared:
            result = target.build(replace(prepared, doing=doing))
        export = bundle.facts("export")[graph]
        if graph == CONSTANT:
            result.warnings.append(
                "This compiler cannot sort: the artifact merges all images alike. In float that model has "
                f"the class of the one that matches each image's on {export['agreement_with_matched']:.3f} of the "
                f"calibration images; `compress --prune-target {target.name}` fits the weights to it."
            )
        metadata: Facts = {
            "target": target.name,
            "precision": precision,
            "platform": platform,
            "artifact": result.artifact,
            "warnings": result.warnings,
            "vitedge": __version__,
            "macs": export["macs"],
            "params": export["params"],
            "attention_output": list(read_config(bundle).grid) if options.attends else None,
        } | result.metadata
        # What pruning or training lost before is no fault of the build, and still what the user gets.
        source = run_graph(bundle.verified(REFERENCE), images) if bundle.has(REFERENCE) else None
        metadata["check"] = check_artifact(
            target,
            out / result.artifact,
            metadata,
            images,
            reference,
            kind,
            float32,
            source=source,
            activation=find_activation(bundle),
        )
        write_json(out / "metadata.json", metadata)
        cost = target.cost(out / result.artifact, metadata)
        if cost is not None and cost.rows:
            tables = [summarize(cost, name, metadata.get("vendor_cycles_before"))]
            # The vendor leaves parts out; the model of all parts stands beside it.
            config = read_config(bundle)
            if (latency := store.find(target.name, precision, platform, config.width)) is not None:
                metadata["estimate_ms"] = latency.predict(config).ms
                tables.append(latency.estimate(config, name))
                write_json(out / "metadata.json", metadata)
            write_json(folder / COSTS.format(name), to_json(*tables))
        for line in result.warnings:
            reporter.warn(line)
        return {"folder": f"build/{name}", "bytes": model_bytes(out, metadata), "check": metadata["check"]}

    return bundle.run_step(
        f"build/{name}",
        work,
        options=options.model_dump() | {"target": target.name, "precision": precision, "platform": platform},
        inputs=graphs + extra,
        modules=("vitedge.steps.build", type(target).__module__.rpartition(".")[0]),
        tools=target.probe().versions,
    )


def preview_artifact(
    bundle: Bundle, target: Target, precision: str, platform: str | None, options: TargetOptions
) -> str | None:
    """What the target would run instead of building, where its options ask for that (`--print-trtexec`), else
    None.

    What the command needs is left in `build/<target>-<precision>-preview/`.
    """
    out = bundle.root / "build" / f"{folder_name(target.name, precision, platform)}-preview"
    return target.preview(lambda: _request(bundle, target, make_folder(out), precision, platform, options), options)


def float_graph(bundle: Bundle, target: Target) -> tuple[str, str]:
    """The float graph that the target's compiler takes, and the file of its logits on the images of the check: where it
    cannot sort, the one that merges all images alike. Raises VitedgeError where there is none."""
    config = read_config(bundle)
    if target.sorts or not any(block.merge and block.merge.matched for block in config.blocks):
        return FLOAT32, LOGITS
    if not bundle.has(CONSTANT):
        config.merged_alike()  # says what to do
    return CONSTANT, CONSTANT_LOGITS


def _request(
    bundle: Bundle, target: Target, out: Path, precision: str, platform: str | None, options: TargetOptions
) -> BuildRequest:
    source, logits = float_graph(bundle, target)
    return BuildRequest(
        onnx=bundle.verified(source),
        out=out,
        precision=precision,
        platform=platform,
        options=options,
        pixels=read_pixels(bundle),
        reference_logits=np.load(bundle.verified(logits)),
        onnx_by_precision={g: bundle.path(f"onnx/{g}.onnx") for g in _GRAPHS if bundle.has(f"onnx/{g}.onnx")},
        quant=bundle.path("quant") if bundle.path("quant").is_dir() else None,
        activation=find_activation(bundle),
    )


def _previous(bundle: Bundle, name: str) -> Json | None:
    """The metadata of the artifact that is there, or None."""
    path = f"build/{name}/metadata.json"
    if not bundle.has(path):
        return None
    try:
        return bundle.json(path)
    except VitedgeError:  # it was changed by hand, and will be replaced
        return None


def _taps(graph: Path, options: TargetOptions) -> tuple[str, ...]:
    """The values that `--block-outputs` asks for."""
    if not options.block_outputs:
        return ()
    import onnx

    from vitedge.onnx_graph.matcher import taps_of

    return tuple(taps_of(onnx.load(graph)))


@contextmanager
def _attending(bundle: Bundle, request: BuildRequest) -> Iterator[BuildRequest]:
    """The request with graphs that have attention as a second output, where its options ask for that."""
    if not request.options.attends:
        yield request
        return
    import onnx

    from vitedge.export.attention import with_attention

    config = read_config(bundle)
    with tempfile.TemporaryDirectory() as folder:
        graphs = {}
        for name, path in request.onnx_by_precision.items():
            if name == "reference":
                continue
            try:
                graph = with_attention(onnx.load(path), config)
            except ValueError as error:
                raise VitedgeError(
                    "This model has no attention map.", f"{str(error).capitalize()}.", "Leave --attention-output out."
                ) from error
            graphs[name] = Path(folder) / f"{name}.onnx"
            onnx.save(graph, graphs[name])
        yield replace(request, onnx=graphs["float32"], onnx_by_precision=graphs)


def _check_request(target: Target, precision: str, platform: str | None, options: TargetOptions) -> None:
    if precision not in target.precisions:
        raise VitedgeError(
            f"The target '{target.name}' has no precision '{precision}'.",
            "",
            f"Choose one of: {', '.join(target.precisions)}.",
        )
    if platform and platform not in target.platforms:
        known = ", ".join(target.platforms) or "none; leave --platform out"
        why = target.refused.get(platform, "")
        raise VitedgeError(f"The target '{target.name}' has no platform '{platform}'.", why, f"It has: {known}.")
    if options.block_outputs and not target.block_outputs:
        can = [name for name in names() if get(name).block_outputs]
        raise VitedgeError(
            f"The target '{target.name}' has no artifacts with block outputs yet.",
            "A pack's golden logits are checked without them.",
            f"Leave --block-outputs out; it is there for {', '.join(can)}.",
        )
    probe = target.probe()
    if not probe.can_build and not options.names_compiler():
        raise VitedgeError(f"The target '{target.name}' can't build here.", probe.reason, probe.fix, exit_code=1)


def _overflowed(precision: str, graph: Path | None, images: np.ndarray) -> VitedgeError:
    """The error for logits that are no numbers: which block passes what FP16 can hold, and the way out."""
    found, where, why = None, "", "Its logits are NaN or infinite."
    if graph is not None:
        import onnx

        from vitedge.onnx_graph.ranges import FLOAT16_MAX, first_overflow

        found = first_overflow(onnx.load(graph), images)
    if found:
        block = re.search(r"block(\d+)", found[0])
        where = f" at block {block[1]}" if block else f" at '{found[0]}'"
        why = f"'{found[0]}' reaches {found[1]:.3g}; FP16 ends at {FLOAT16_MAX:.0f}. {why}"
    return VitedgeError(
        f"{precision.upper()} overflows{where}." if found else f"The {precision.upper()} artifact computes no numbers.",
        why,
        "Build with --precision int8 (--max-drop says what it may cost), or for a target that rescales such a model: "
        "tensorrt.",
        exit_code=1,
    )


def check_artifact(
    target: Target,
    artifact: Path,
    metadata: Mapping[str, Any],
    images: np.ndarray,
    reference: np.ndarray,
    kind: str,
    graph: Path | None = None,
    *,
    source: np.ndarray | None = None,
    activation: Activation = "softmax",
) -> Facts:
    """Agreement and logit SQNR against the float model that the artifact was built from, by which the build is accepted
    or not, and as `source_*` against the model as it came; None figures where it can't run.

    reference, source: float32 [n, classes] of the two; `source` None where both compute the same.
    graph: what it was built from. Raises VitedgeError where it gives NaN or infinity, with the place where FP16 ends.
    """
    precision = metadata["precision"]
    probe = target.probe()
    if not probe.can_run:
        return {"accepted": None, "reason": f"not compared with FP32: {probe.reason}", "images": 0}
    runner = target.open(artifact, dict(metadata))
    try:
        images, reference = images[: len(reference)], reference[: len(images)]
        logits = np.concatenate([runner.infer(images[i : i + 16]) for i in range(0, len(images), 16)])
    finally:
        runner.close()
    if not np.isfinite(logits).all():
        raise _overflowed(precision, graph, images)
    near = fidelity(reference, logits, activation)
    of_source = near if source is None else fidelity(source[: len(logits)], logits, activation)
    agreement, sqnr = near["agreement"], near["sqnr_db"]
    # Images of noise have no clear class: there, only the logits can be compared.
    close = kind.startswith("images of noise") and (sqnr is None or sqnr > 10)
    accepted = bool(agreement >= MIN_AGREEMENT[precision] or close)
    return {
        "accepted": accepted,
        "reason": ""
        if accepted
        else f"agreement with the float model that it was built from is {agreement:.3f}, at least "
        f"{MIN_AGREEMENT[precision]} is asked",
        "images": len(images),
        "kind": kind,
        "device": runner.device,
        "reference": "the float model that it was built from",
        "agreement": agreement,
        "sqnr_db": finite(sqnr, 2),
        "source_agreement": of_source["agreement"],
        "source_sqnr_db": finite(of_source["sqnr_db"], 2),
    }
