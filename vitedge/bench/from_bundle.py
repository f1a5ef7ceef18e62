"""What a run folder has to measure: its artifacts, its FP32 reference, its data. Runs on a board: no torch,
no onnx."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from vitedge import targets
from vitedge.bench.artifact import SOURCE, Artifact
from vitedge.bench.golden.facts import BLOCKS
from vitedge.bench.groups import Job
from vitedge.bench.records import RECORD
from vitedge.bench.result import BenchResult, load, new_row
from vitedge.bench.schema import Data, Row
from vitedge.bench.source import DatasetSource, NoiseSource, Source
from vitedge.bundle import DEFAULT_RUN, Bundle
from vitedge.data.classes import read_classes
from vitedge.data.folder import is_there, open_dataset
from vitedge.data.preprocess import Preprocess
from vitedge.data.sample import sample
from vitedge.data.shapes import SHAPES
from vitedge.errors import VitedgeError
from vitedge.host import facts as host
from vitedge.metrics import Activation
from vitedge.targets.metadata import read_metadata

log = logging.getLogger(__name__)

_NOT_THE_MODEL = ("metadata.json", "build.log", BLOCKS)
_REFERENCES = ("onnx/reference.onnx", "onnx/float32.onnx")


def find_artifacts(bundle: Bundle, only: Sequence[str] = (), *, refuse_stale: bool = False) -> list[Job]:
    """All artifacts of the run with what is known of each; those that can't be measured have their reason.

    Args:
        only: names of artifacts, of targets or of precisions; empty for all.
        refuse_stale: whether one artifact that is stale is an error, and not only all of them.

    Raises:
        VitedgeError: the run has no artifact, `only` matches none, all are stale, or a file was changed since then.
    """
    names = sorted({path.split("/")[1] for path in bundle.files("build/")})
    if not names:
        raise VitedgeError(
            f"The run '{bundle.root}' has no artifact to measure.",
            "Nothing was built yet.",
            f"Make one: vitedge build --target onnxruntime --run {bundle.root}",
        )
    # What is not asked for may be broken.
    chosen = [read_artifact(bundle, name) for name in names if is_chosen(name, only)]
    if not chosen:
        raise VitedgeError(f"No artifact is called {', '.join(only)}.", "", f"The run has: {', '.join(names)}.")
    stale = [job for job in chosen if job.row.reason.startswith(STALE)]
    if stale and (refuse_stale or len(stale) == len(chosen)):
        raise VitedgeError(
            f"{', '.join(job.artifact.name for job in stale)}: not of the run's present model.",
            stale[0].row.reason,
            f"Build again: {'; '.join(build_command(bundle, job.artifact) for job in stale)}",
            exit_code=1,
        )
    return chosen


# How the reason of a row begins whose artifact was made from what the run no longer holds.
STALE = "stale: "


def build_command(bundle: Bundle, artifact: Artifact) -> str:
    """What builds the artifact anew."""
    platform = f" --platform {artifact.platform}" if artifact.platform else ""
    where = "" if str(bundle.root) == DEFAULT_RUN else f" --run {shlex.quote(str(bundle.root))}"
    more = " --attention-output" if artifact.metadata.get("attention_output") else ""
    return f"vitedge build --target {artifact.target} --precision {artifact.precision}{platform}{more}{where}"


def is_chosen(name: str, only: Sequence[str]) -> bool:
    """Whether `only` names this artifact (see `steps.build.folder_name`), its target or its precision, or nothing."""
    return not only or bool({name, *name.split("-")[:2]} & set(only))


def need_runnable(jobs: list[Job]) -> None:
    """Raises VitedgeError where none of them runs on this machine, with the commands that would make one."""
    if any(not job.row.reason for job in jobs):
        return
    commands = [f"vitedge build --target {name}" for name in targets.names() if targets.get(name).probe().can_run]
    raise VitedgeError(
        "None of the artifacts runs on this machine.",
        " ".join(f"{job.artifact.name}: {job.row.reason}" for job in jobs),
        f"Make one that does: {' or '.join(commands)}" if commands else "See `vitedge doctor`.",
        exit_code=1,
    )


def read_artifact(bundle: Bundle, name: str) -> Job:
    """One artifact below `build/`, its files checked by hash, and the row's known figures."""
    prefix = f"build/{name}/"
    files = bundle.files(prefix)
    metadata = read_metadata(bundle.read(f"{prefix}metadata.json"), f"{prefix}metadata.json")
    digest = hashlib.sha256()
    for path in files:
        bundle.verified(path)
        digest.update(bundle.manifest.artifacts[path].sha256.encode())
    artifact = Artifact(
        name,
        metadata["target"],
        metadata["precision"],
        bundle.path(prefix + metadata["artifact"]),
        metadata.get("platform"),
        metadata,
        sha256=digest.hexdigest(),
    )
    job = known_job(artifact, model_bytes(bundle.path(f"build/{name}"), metadata))
    if reason := bundle.stale(*files):
        job.update(status="failed", reason=f"{STALE}{reason} Build it again: {build_command(bundle, artifact)}")
    return job


def model_bytes(folder: Path, metadata: Mapping[str, Any]) -> int:
    """Bytes of what a board needs of an artifact's folder: no metadata, no log, no artifact with block outputs, nothing
    that is the builder's own, such as a simulator's files."""
    left_out = {*_NOT_THE_MODEL, *metadata.get("host_only", ())}
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if path.relative_to(folder).parts[0] not in left_out)


def known_job(artifact: Artifact, size_bytes: int) -> Job:
    """The artifact with what its row has before it runs; `status` and `reason` where it can't run here."""
    metadata = artifact.metadata
    target = targets.get(artifact.target)
    try:
        cost = target.cost(artifact.path, metadata)
        cycles = cost.total_cycles if cost else None
    except Exception:  # the vendor's own tool; the row is worth measuring without its estimate
        cycles = None
    row = new_row(
        artifact,
        size_mib=size_bytes / 2**20,
        warnings=tuple(metadata.get("warnings", ())),
        macs=metadata.get("macs"),
        params=metadata.get("params"),
        accepted=(metadata.get("check") or {}).get("accepted"),
        session=metadata.get("session"),
        vendor_cycles=cycles,
    )
    probe = target.probe()
    if not probe.can_run:
        row = replace(row, status="unavailable", reason=f"{probe.reason} {probe.fix}".strip())
    return Job(artifact, row)


def find_reference(bundle: Bundle) -> Job | None:
    """The model before compression, as it was exported: `onnx/reference.onnx`, else `onnx/float32.onnx`, which
    computes the same."""
    for name in _REFERENCES:
        if bundle.has(name):
            file, digest = bundle.verified(name), bundle.manifest.artifacts[name].sha256
            facts = bundle.facts("export").get(name, {})
            artifact = Artifact(SOURCE, targets.REFERENCE, "fp32", file, sha256=digest)
            size = file.stat().st_size / 2**20
            row = new_row(artifact, size_mib=size, macs=facts.get("macs"), params=facts.get("params"))
            return Job(artifact, row)
    return None


def load_result(path: Path) -> BenchResult:
    """A bench JSON, or the newest of a run folder; of one in a run's own `bench/` what is stale is marked as failed.

    Raises VitedgeError where there is none.
    """
    if (path / "manifest.json").is_file():
        records = sorted((path / "bench").glob("*.json"), key=lambda file: file.stat().st_mtime)
        if not records:
            raise VitedgeError(f"Nothing was measured in '{path}' yet.", "", f"Measure it: vitedge bench --run {path}")
        path = records[-1]
    result, root = load(path), path.resolve().parent.parent
    if path.resolve().parent.name == "bench" and (root / "manifest.json").is_file():
        return current_result(Bundle.open(root), result)
    return result


def current_result(bundle: Bundle, result: BenchResult) -> BenchResult:
    """The result with what is stale marked as failed: a row of an artifact that was built again since, that is gone, or
    that no longer belongs to the run's model."""
    return replace(result, rows=tuple(_current_row(bundle, row) for row in result.rows))


def _current_row(bundle: Bundle, row: Row) -> Row:
    if row.role == "source":
        reference = find_reference(bundle)
        same = reference is not None and reference.artifact.sha256 == row.artifact_sha256
        # Earlier versions did not write what it was.
        reason = "" if same or not row.artifact_sha256 else "the source model is another one now."
    else:
        files = bundle.files(f"build/{row.artifact}/")
        digests = "".join(bundle.manifest.artifacts[path].sha256 for path in files)
        now, then = hashlib.sha256(digests.encode()).hexdigest(), row.artifact_sha256
        # Earlier versions wrote the first digits of it alone, into the name of the records.
        then = then or (Path(row.records or "").stem.rpartition("-")[2] if row.records else "")
        reason = bundle.stale(*files) if files else "it is no longer in the run."
        if not reason and then and not now.startswith(then):
            reason = "it was built again since it was measured."
    return replace(row, status="failed", reason=f"{STALE}{reason}") if reason else row


def find_preprocess(bundle: Bundle) -> Preprocess:
    """The run's preprocessing."""
    for name in ("model/preprocess.json", "source/preprocess.json"):
        if bundle.has(name):
            return Preprocess.load(bundle.verified(name))
    raise VitedgeError(f"The run '{bundle.root}' has no preprocessing.", "", "Run `vitedge compress` on it again.")


def find_classes(bundle: Bundle) -> tuple[str, ...] | None:
    """The class names, or None where they are not known."""
    for name in ("model/classes.txt", "source/classes.txt"):
        if bundle.has(name):
            return tuple(bundle.text(name).splitlines())
    return None


def class_count(bundle: Bundle) -> int | None:
    """The model's number of classes, or None; an embedding has none."""
    name = "model/arch.json"
    if not bundle.has(name) or find_activation(bundle) == "none":
        return None
    return bundle.json(name).get("classes")


def find_activation(bundle: Bundle) -> Activation:
    """What turns the model's logits into probabilities: "sigmoid" for several labels an image; "none": embeddings."""
    for name in ("model/arch.json", "source/arch.json"):
        if bundle.has(name):
            found: Any = bundle.json(name).get("activation")
            return found if found in get_args(Activation) else "softmax"
    return "softmax"


def is_foreign_drawing(folder: str | Path, classes: Sequence[str] | None) -> bool:
    """Whether the folder is the drawn `shapes` set, and the model was made for something else."""
    names = Path(folder) / "classes.txt"
    return names.is_file() and read_classes(names) == SHAPES and tuple(classes or ()) != SHAPES


def find_source(
    bundle: Bundle, data: str | None, limit: int | None, seed: int, names: Sequence[str] | None = None
) -> Source:
    """The images: the folder `data`, else the one that the run was calibrated on, else noise.

    names: of the classes, where the model has none of its own.

    Raises:
        VitedgeError: the folder is missing or its labels don't fit the model.
    """
    calibrated = bundle.facts("calib").get("path")
    folder = data or calibrated
    preprocess = find_preprocess(bundle)
    if folder is None:
        return NoiseSource((*preprocess.size, preprocess.bands))
    if data is None and not is_there(folder):
        raise VitedgeError(
            f"The data that the run was calibrated on is gone: {folder}.", "", "Name a data set with --data DIR."
        )
    count = len(names) if names else class_count(bundle)
    classes = tuple(names) if names else find_classes(bundle)
    if is_foreign_drawing(folder, classes):
        # Its labels are numbers of shapes: as numbers of the model's classes they would mean nothing.
        dataset = replace(open_dataset(folder), labels=None, classes=None)
    elif data is None:
        # Calibration images need no labels: what stands beside them may be of other classes.
        try:
            dataset = open_dataset(folder, classes, count, "train")
        except VitedgeError as error:
            log.warning("accuracy is not measured on the calibration images: %s", error.what)
            dataset = replace(open_dataset(folder), labels=None, classes=None)
    else:
        dataset = open_dataset(folder, classes, count)
    if dataset.labels is not None and count is not None:
        dataset.require_labels("Accuracy", count)
    opened = dataset.origin or str(dataset.root.resolve())
    known = Data(limit=limit, seed=seed, of=len(dataset), calibration=opened == calibrated)
    return DatasetSource(sample(dataset, limit, seed), preprocess, known)


def work_folder(root: Path, source: Source) -> Path:
    """Where the records of this data on this machine are kept: other data or library versions, other
    folder."""
    facts = source.facts()
    recipe = json.dumps([facts.sha256, facts.n, host.versions(), str(RECORD.descr)], sort_keys=True)
    return root / "bench" / "work" / hashlib.sha256(recipe.encode()).hexdigest()[:12]
