"""`vitedge pack`: all that a board needs in one tar file: artifacts, ready tensors, labels, FP32 logits,
checksums."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from vitedge import __version__, documents
from vitedge.bench import evaluate, from_bundle
from vitedge.bench.golden.make import make_golden
from vitedge.bench.jobs import Settings
from vitedge.bench.pack_index import INDEX, SCHEMA, PackArtifact, PackIndex
from vitedge.bench.process import ArtifactFailed, ArtifactProcess
from vitedge.bench.schema import Data
from vitedge.bench.source import Source
from vitedge.bundle import Bundle
from vitedge.errors import VitedgeError
from vitedge.files import output_path, scratch_dir
from vitedge.manifest import sha256_file
from vitedge.reporter import Reporter

_BATCH = 64
_SAMPLES = 8  # image files that go along, to time the way from a file on the board


def digest(index: Mapping[str, object]) -> str:
    """SHA-256 of the pack's index itself, its own `digest` left out."""
    rest = {key: value for key, value in index.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_pack(
    bundle: Bundle,
    out: Path,
    *,
    data: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    only: Sequence[str] = (),
    settings: Settings | None = None,
    reporter: Reporter | None = None,
) -> PackIndex:
    """Writes the pack `out` (tar, atomically) and returns its index.

    Raises:
        VitedgeError: no artifact, no data, labels that don't fit, or the FP32 reference fails.
    """
    reporter = reporter or Reporter()
    artifacts = from_bundle.find_artifacts(bundle, only, refuse_stale=True)
    source = from_bundle.find_source(bundle, data, limit, seed)
    if len(source) == 0:
        raise VitedgeError(
            "A pack needs images.", "The run was not calibrated on any.", "Name a data set with --data DIR."
        )
    # In the run folder, where the next command finds what a killed one left.
    with scratch_dir(bundle.root, "pack") as folder:
        facts = source.facts()
        shape, positions = _write_pixels(source, folder / "pixels.u8", reporter)
        members = {"pixels.u8": folder / "pixels.u8"}
        if source.labels is not None:
            np.save(folder / "labels.npy", source.labels[positions])
            members["labels.npy"] = folder / "labels.npy"
        for number, file in enumerate(source.files(_SAMPLES)):
            members[f"samples/{number}{file.suffix.lower()}"] = file
        classes = _write_reference(
            bundle, source, positions, folder / "reference.f32", settings or Settings(), reporter
        )
        if classes:
            members["reference.f32"] = folder / "reference.f32"
        entries: list[PackArtifact] = []
        for job in artifacts:
            artifact = job.artifact
            below = artifact.path.parent
            # What only the machine that built it needs, such as a simulator's files, stays there.
            skipped = {"build.log", *artifact.metadata.get("host_only", ())}
            for file in sorted(path for path in below.rglob("*") if path.is_file()):
                relative = file.relative_to(below)
                if not skipped & set(relative.parts):
                    members[f"artifacts/{artifact.name}/{relative.as_posix()}"] = file
            entry = {
                "name": artifact.name,
                "target": artifact.target,
                "precision": artifact.precision,
                "platform": artifact.platform,
                "file": artifact.path.name,
                "bytes": round((job.row.size_mib or 0.0) * 2**20),
                "sha256": artifact.sha256,
            }
            entries.append(documents.validate(entry, PackArtifact, artifact.name))
        activation = from_bundle.find_activation(bundle)
        preprocess = from_bundle.find_preprocess(bundle)
        pixels = np.memmap(folder / "pixels.u8", np.uint8, "r", shape=tuple(shape))
        golden, files = make_golden(bundle, pixels, artifacts, preprocess, folder, settings or Settings(), reporter)
        members |= files
        index = {
            "schema": SCHEMA,
            "vitedge": __version__,
            "shape": shape,
            "classes": classes,
            "names": source.names,
            "preprocess": preprocess.to_dict(),
            # Only the data set's name: where it lies on this machine is nobody's business on the board.
            "data": TypeAdapter(Data).dump_python(
                replace(facts, path=Path(facts.path or "").name, n=shape[0], activation=activation), mode="json"
            ),
            "artifacts": [entry.model_dump() for entry in entries],
            "golden": golden and golden.model_dump(),
            "files": {
                path: {"sha256": sha256_file(file), "bytes": file.stat().st_size} for path, file in members.items()
            },
        }
        index |= {"digest": digest(index)}
        made = documents.validate(index, PackIndex, INDEX)
        with output_path(out) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            _add(tar, INDEX, json.dumps(index, indent=1).encode())
            for path, file in members.items():
                with file.open("rb") as opened:
                    member = tarfile.TarInfo(path)
                    member.size = file.stat().st_size
                    tar.addfile(member, opened)
    return made


def _write_pixels(source: Source, path: Path, reporter: Reporter) -> tuple[list[int], np.ndarray]:
    """Raw uint8 of all readable images; their shape [n, H, W, 3] and their positions in the source."""
    positions: list[np.ndarray] = []
    shape: list[int] = []
    with path.open("wb") as file, reporter.progress("images", len(source)) as advance:
        for at, pixels in source.batches(0, _BATCH):
            file.write(np.ascontiguousarray(pixels).tobytes())
            positions.append(at)
            shape = list(pixels.shape[1:])
            advance(len(at))
    found = np.concatenate(positions)
    return [found.size, *shape], found


def _write_reference(
    bundle: Bundle, source: Source, positions: np.ndarray, path: Path, settings: Settings, reporter: Reporter
) -> int | None:
    """Raw float32 logits [n, classes] of the FP32 reference; the number of classes, None without a
    reference."""
    job = from_bundle.find_reference(bundle)
    if job is None:
        reporter.warn("the run has no FP32 graph: the pack has no reference logits")
        return None
    reference = job.artifact
    work = from_bundle.work_folder(bundle.root, source)
    kept = evaluate.RecordFile(work / f"{reference.key}.rec", with_logits=True)
    log = work / "logs" / f"{reference.name}.log"
    try:
        with (
            ArtifactProcess(reference, log, timeout_s=settings.timeout_s) as row,
            reporter.progress("FP32", len(source)) as advance,
        ):
            row.open(threads=settings.threads)
            evaluate.evaluate(row, source, kept, None, advance)
            row.close()
    except ArtifactFailed as failed:
        raise VitedgeError("The FP32 reference failed.", failed.reason, f"See {log}.", exit_code=1) from None
    lookup = evaluate.recorded_reference(kept)
    classes = None
    with path.open("wb") as file:
        for start in range(0, positions.size, _BATCH):
            logits = lookup(positions[start : start + _BATCH])
            assert logits is not None, "the reference was run on every readable image"
            file.write(logits.tobytes())
            classes = logits.shape[1]
    return classes


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
