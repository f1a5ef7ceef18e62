"""Golden references of a run, made where it is packed: FP32's logits and values between blocks, each artifact's own."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.bench.artifact import Artifact
from vitedge.bench.golden import facts
from vitedge.bench.golden.facts import Golden, GoldenArtifact, GoldenGraph
from vitedge.bench.groups import Job
from vitedge.bench.jobs import Settings
from vitedge.bench.process import ArtifactFailed, ArtifactProcess
from vitedge.bundle import Bundle
from vitedge.data.preprocess import Preprocess
from vitedge.metrics import finite, sqnr_db
from vitedge.reporter import Reporter
from vitedge.targets import get
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner

IMAGES = 4
# The values between blocks are large: so many images of them as fit into this.
_TAP_BYTES = 32 * 2**20


def make_golden(
    bundle: Bundle,
    pixels: np.ndarray,
    jobs: Sequence[Job],
    preprocess: Preprocess,
    folder: Path,
    settings: Settings,
    reporter: Reporter,
) -> tuple[Golden | None, dict[str, Path]]:
    """The golden references and their files (path in the pack -> file below `folder`); None without a float graph.

    pixels: all images of the pack, uint8 [N, H, W, C].
    """
    positions = sorted({int(at) for at in np.linspace(0, len(pixels) - 1, min(IMAGES, len(pixels)))})
    images = np.ascontiguousarray(pixels[positions])
    made: dict[str, Path] = {}

    def write(name: str, values: np.ndarray) -> None:
        made[name] = folder / name
        made[name].parent.mkdir(parents=True, exist_ok=True)
        np.save(made[name], np.ascontiguousarray(values, np.float32))

    graphs: dict[str, GoldenGraph] = {}
    artifacts: dict[str, GoldenArtifact] = {}
    references: dict[str, _Reference] = {}
    with reporter.busy("golden references"):
        for job in jobs:
            name = _graph_of(bundle, job.artifact)
            if not bundle.has(f"onnx/{name}.onnx"):
                continue
            if name not in references:
                references[name] = _Reference(bundle.verified(f"onnx/{name}.onnx"))
                logits = references[name].logits(images)
                write(facts.graph_logits(name), logits)
                wrong = references[name].faults(images, preprocess)
                for fault, values in wrong.items():
                    write(facts.graph_fault(name, fault), values)
                graphs[name] = GoldenGraph(faults=list(wrong))
            wanted = tuple((job.artifact.metadata.get("blocks") or {}).get("taps", ()))
            if wanted and not graphs[name].taps:
                for tap, values in references[name].taps(images, wanted).items():
                    write(facts.graph_tap(name, tap), values)
                    graphs[name] = graphs[name].model_copy(update={"taps": [*graphs[name].taps, tap]})
            artifacts[job.artifact.name] = _own(job, name, images, made, write, folder, settings, reporter)
    if not artifacts:
        return None, {}
    return Golden(positions=positions, graphs=graphs, artifacts=artifacts), made


def _graph_of(bundle: Bundle, artifact: Artifact) -> str:
    """The float graph that the artifact is held against: where its compiler cannot sort, the one without matching."""
    return "constant" if not get(artifact.target).sorts and bundle.has("onnx/constant.onnx") else "float32"


def _own(
    job: Job,
    graph: str,
    images: np.ndarray,
    made: Mapping[str, Path],
    write: Any,
    folder: Path,
    settings: Settings,
    reporter: Reporter,
) -> GoldenArtifact:
    """What the artifact itself gives here, where it runs here."""
    artifact = job.artifact
    blocks = artifact.metadata.get("blocks") or {}
    file, taps = blocks.get("artifact"), list(blocks.get("taps", ()))
    known = GoldenArtifact(graph=graph, blocks=file, taps=dict.fromkeys(taps))
    if job.row.reason:
        return known
    reference = np.load(made[facts.graph_logits(graph)])
    try:
        device, (logits, *_) = run_outputs(artifact, images, folder / "logs", settings)
        if logits.size == reference.size:
            logits = logits.reshape(reference.shape)
        write(facts.own_logits(artifact.name), logits)
        near = finite(sqnr_db(reference, logits), 2) if logits.shape == reference.shape else None
        known = known.model_copy(update={"device": device, "sqnr_db": near})
        if file:
            _, (_, *values) = run_outputs(with_blocks(artifact, file), images, folder / "logs", settings)
            found = {}
            for tap, value in zip(taps, values, strict=True):
                right = np.load(made[facts.graph_tap(graph, tap)])
                found[tap] = finite(sqnr_db(right, value[: len(right)].reshape(right.shape)), 2)
            known = known.model_copy(update={"taps": found})
    except ArtifactFailed as failed:
        reporter.warn(f"{artifact.name} does not run here, so a board can only hold it against FP32: {failed.reason}")
    return known


def with_blocks(artifact: Artifact, file: str) -> Artifact:
    """The artifact with the outputs of its blocks, in the same folder."""
    return Artifact(
        f"{artifact.name}-blocks",
        artifact.target,
        artifact.precision,
        artifact.path.parent / file,
        artifact.platform,
        artifact.metadata,
        artifact.module,
    )


def run_outputs(artifact: Artifact, images: np.ndarray, logs: Path, settings: Settings) -> tuple[str, list[np.ndarray]]:
    """(device, all outputs float32 [n, ...]) of an artifact in a process of its own. Raises ArtifactFailed."""
    with ArtifactProcess(artifact, logs / f"{artifact.name}.log", timeout_s=settings.timeout_s) as process:
        device = process.open(threads=settings.threads)["device"]
        found = process.outputs(images)
        process.close()
    return device, found


class _Reference:
    """A float graph in FP32, its values and what it says of images that went wrong on their way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Without onnx there are logits alone: a run folder on a board has no more.
        self.model: Any = None
        if importlib.util.find_spec("onnx"):
            import onnx

            self.model = onnx.load(path)

    def logits(self, images: np.ndarray) -> np.ndarray:
        return _run(self.path, None, images)[0]

    def taps(self, images: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Tap -> its values [n, tokens, C] of the first images."""
        if self.model is None:
            return {}
        from vitedge.onnx_graph.editor import with_outputs

        model = with_outputs(self.model, names).SerializeToString()
        first = _run(self.path, model, images[:1])[1:]
        fits = int(np.clip(_TAP_BYTES // sum(value.nbytes for value in first), 1, len(images)))
        return dict(zip(names, _run(self.path, model, images[:fits])[1:], strict=True))

    def faults(self, images: np.ndarray, preprocess: Preprocess) -> dict[str, np.ndarray]:
        """Fault -> the logits of the right model on images that it happened to."""
        n, height, width, channels = images.shape
        # The bytes of an image [H, W, C] taken for one of [C, H, W].
        found = {"layout": images.reshape(n, channels, height, width).transpose(0, 2, 3, 1)} if channels > 1 else {}
        if channels == 3:
            found["channels_swapped"] = images[..., ::-1]
        logits = {name: self.logits(np.ascontiguousarray(pixels)) for name, pixels in found.items()}
        if self.model is not None:
            from vitedge.onnx_graph.editor import with_float_pixels

            mean, std = (np.asarray(one, np.float32) for one in (preprocess.mean, preprocess.std))
            twice = ((images.astype(np.float32) / 255 - mean) / std).astype(np.float32)
            model = with_float_pixels(self.model).SerializeToString()
            logits["normalised_twice"] = _run(self.path, model, twice)[0]
        return logits


def _run(path: Path, model: bytes | None, images: np.ndarray) -> list[np.ndarray]:
    runner = OnnxRuntimeRunner(path, model=model)
    try:
        return runner.outputs(images)
    finally:
        runner.close()
