"""What a run folder has to measure: its artifacts, its FP32 reference, its data. Runs on a board: no torch,
no onnx."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitedge import documents, targets
from vitedge.bench import host
from vitedge.bench.row import Artifact
from vitedge.bench.source import DatasetSource, NoiseSource, Source
from vitedge.bundle import Bundle
from vitedge.data.classes import read_classes
from vitedge.data.folder import open_dataset
from vitedge.data.preprocess import Preprocess
from vitedge.data.sample import sample
from vitedge.data.shapes import SHAPES
from vitedge.errors import VitedgeError
from vitedge.metrics import Activation
from vitedge.targets.metadata import read_metadata

Facts = dict[str, Any]
log = logging.getLogger(__name__)

_NOT_THE_MODEL = ("metadata.json", "build.log")


def find_artifacts(bundle: Bundle, only: Sequence[str] = ()) -> list[tuple[Artifact, Facts]]:
    """All artifacts of the run with what is known of each; those that can't run here have their reason.

    Args:
        only: names of artifacts, of targets or of precisions; empty for all.

    Raises:
        VitedgeError: the run has no artifact, `only` matches none, or a file was changed since it was built.
    """
    names = sorted({path.split("/")[1] for path in bundle.files("build/")})
    if not names:
        raise VitedgeError(
            f"The run '{bundle.root}' has no artifact to measure.",
            "Nothing was built yet.",
            f"Make one: vitedge build --target onnxruntime --run {bundle.root}",
        )
    found = [read_artifact(bundle, name) for name in names]
    chosen = [one for one in found if is_chosen(one[0], only)]
    if not chosen:
        raise VitedgeError(f"No artifact is called {', '.join(only)}.", "", f"The run has: {', '.join(names)}.")
    return chosen


def is_chosen(artifact: Artifact, only: Sequence[str]) -> bool:
    """Whether `only` names this artifact, its target or its precision, or nothing at all."""
    return not only or bool({artifact.name, artifact.target, artifact.precision} & set(only))


def need_runnable(jobs: list[tuple[Artifact, Facts]]) -> None:
    """Raises VitedgeError where none of them runs on this machine, with the commands that would make one."""
    if any("status" not in facts for _, facts in jobs):
        return
    commands = [f"vitedge build --target {name}" for name in targets.names() if targets.get(name).probe().can_run]
    raise VitedgeError(
        "None of the artifacts runs on this machine.",
        " ".join(f"{artifact.name}: {facts['reason']}" for artifact, facts in jobs),
        f"Make one that does: {' or '.join(commands)}" if commands else "See `vitedge doctor`.",
        exit_code=1,
    )


def read_artifact(bundle: Bundle, name: str) -> tuple[Artifact, Facts]:
    """One artifact below `build/`, its files checked by hash, and the row's known figures."""
    prefix = f"build/{name}/"
    files = bundle.files(prefix)
    sizes = 0
    digest = hashlib.sha256()
    for path in files:
        file = bundle.verified(path)
        digest.update(bundle.manifest.artifacts[path].sha256.encode())
        if file.name not in _NOT_THE_MODEL:
            sizes += file.stat().st_size
    metadata = read_metadata(bundle.read(f"{prefix}metadata.json"), f"{prefix}metadata.json")
    artifact = Artifact(
        name,
        metadata["target"],
        metadata["precision"],
        bundle.path(prefix + metadata["artifact"]),
        metadata.get("platform"),
        metadata,
        sha256=digest.hexdigest(),
    )
    return artifact, known_facts(artifact, sizes)


def known_facts(artifact: Artifact, size_bytes: int) -> Facts:
    """What a row has before it runs; `status` and `reason` where it can't run here."""
    metadata = artifact.metadata
    facts: Facts = {"size_mib": size_bytes / 2**20, "warnings": metadata.get("warnings", [])}
    facts |= {"macs": metadata.get("macs"), "params": metadata.get("params")}
    facts["accepted"] = (metadata.get("check") or {}).get("accepted")
    facts["session"] = metadata.get("session")
    target = targets.get(artifact.target)
    try:
        cost = target.cost(artifact.path, metadata)
        facts["vendor_cycles"] = cost.total_cycles if cost else None
    except Exception:  # the vendor's own tool; the row is worth measuring without its estimate
        facts["vendor_cycles"] = None
    probe = target.probe()
    if not probe.can_run:
        facts |= {"status": "unavailable", "reason": f"{probe.reason} {probe.fix}".strip(), "device": None}
    return facts


def find_reference(bundle: Bundle) -> Artifact | None:
    """The FP32 model before compression, in ONNX Runtime: `onnx/reference.onnx`, else `onnx/float32.onnx`."""
    for name in ("onnx/reference.onnx", "onnx/float32.onnx"):
        if bundle.has(name):
            digest = bundle.manifest.artifacts[name].sha256
            return Artifact("fp32-reference", "onnxruntime", "fp32", bundle.verified(name), sha256=digest)
    return None


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
            return tuple(bundle.verified(name).read_text(encoding="utf-8").splitlines())
    return None


def class_count(bundle: Bundle) -> int | None:
    """The model's number of outputs, or None."""
    name = "model/arch.json"
    return documents.parse_json(bundle.read(name), name).get("classes") if bundle.has(name) else None


def find_activation(bundle: Bundle) -> Activation:
    """What turns the model's logits into probabilities: "sigmoid" for several labels an image, else "softmax"."""
    for name in ("model/arch.json", "source/arch.json"):
        if bundle.path(name).is_file():
            found = json.loads(bundle.path(name).read_text(encoding="utf-8")).get("activation")
            return "sigmoid" if found == "sigmoid" else "softmax"
    return "softmax"


def is_foreign_drawing(folder: str | Path, classes: Sequence[str] | None) -> bool:
    """Whether the folder is the drawn `shapes` set, and the model was made for something else."""
    names = Path(folder) / "classes.txt"
    return names.is_file() and read_classes(names) == SHAPES and tuple(classes or ()) != SHAPES


def find_source(bundle: Bundle, data: str | None, limit: int | None, seed: int) -> Source:
    """The images: the folder `data`, else the one that the run was calibrated on, else noise.

    Raises:
        VitedgeError: the folder is missing or its labels don't fit the model.
    """
    calibrated = bundle.facts("calib").get("path")
    folder = data or calibrated
    preprocess = find_preprocess(bundle)
    if folder is None:
        return NoiseSource(preprocess.crop)
    if data is None and not Path(folder).is_dir():
        raise VitedgeError(
            f"The data that the run was calibrated on is gone: {folder}.", "", "Name a data set with --data DIR."
        )
    count = class_count(bundle)
    classes = find_classes(bundle)
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
    on_calibration = calibrated is not None and Path(folder).resolve() == Path(calibrated).resolve()
    extra = {"limit": limit, "seed": seed, "of": len(dataset), "calibration": on_calibration}
    return DatasetSource(sample(dataset, limit, seed), preprocess, extra)


def work_folder(root: Path, source: Source) -> Path:
    """Where the records of this data on this machine are kept: other data or library versions, other
    folder."""
    facts = source.facts()
    recipe = json.dumps([facts["sha256"], facts["n"], host.versions()], sort_keys=True)
    return root / "bench" / "work" / hashlib.sha256(recipe.encode()).hexdigest()[:12]
