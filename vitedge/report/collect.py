"""Reads all that the report shows out of a run folder; draws nothing."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from vitedge.bench.evaluate import RecordFile
from vitedge.bench.from_bundle import current_result, find_classes, find_source
from vitedge.bench.result import BenchResult, load
from vitedge.bench.schema import Row
from vitedge.bench.source import DatasetSource
from vitedge.bundle import Bundle
from vitedge.data.folder import is_there
from vitedge.errors import VitedgeError
from vitedge.manifest import ArtifactEntry, StepEntry
from vitedge.report.classes import ByClass, by_class
from vitedge.report.flips import Flips, find_flips, thumbnail
from vitedge.report.training import Training, read_training
from vitedge.tables import Table, load_tables


@dataclass
class Facts:
    """What a run has: `results` by file name, `steps` and `artifacts` of the manifest, tables of other rooms."""

    root: Path
    results: dict[str, BenchResult]
    steps: dict[str, StepEntry]
    artifacts: dict[str, ArtifactEntry]
    tables: list[Table]
    problems: list[str]
    flips: list[Flips] = field(default_factory=list)
    classes: list[ByClass] = field(default_factory=list)
    source: DatasetSource | None = None
    training: Training | None = None

    def reported(self, step: str, fact: str) -> JsonValue:
        """What that step reported under that name; None where it was not run or says nothing of it."""
        return self.steps[step].facts.get(fact) if step in self.steps else None

    @property
    def measured(self) -> list[Row]:
        """The rows of all machines that were measured."""
        return [row for result in self.results.values() for row in result.ok]


def collect(bundle: Bundle) -> Facts:
    """The facts of a run. Raises VitedgeError where it was never measured, or nothing that was is current."""
    found, problems = {}, []
    for path in sorted((bundle.root / "bench").glob("*.json")):
        try:
            found[path.stem] = current_result(bundle, load(path))
        except VitedgeError as error:
            problems.append(str(error))
    if not found:
        raise VitedgeError(
            f"The run '{bundle.root}' was not measured yet.",
            " ".join(problems) or "It has no bench/*.json.",
            f"Measure it first: vitedge bench --run {bundle.root}",
        )
    tables, wrong = load_tables(bundle.root / "analysis")
    manifest = bundle.manifest
    facts = Facts(
        bundle.root,
        found,
        manifest.steps,
        manifest.artifacts,
        tables,
        problems + wrong,
    )
    try:
        facts.training = read_training(bundle)
    except VitedgeError as error:
        facts.problems.append(str(error))
    names = find_classes(bundle)
    for result in found.values():
        source = _source(bundle, result)
        facts.source = facts.source or source
        for row in result.ok:
            records = _records(bundle, row)
            if records is None:
                continue
            if result.data.activation == "none":
                continue  # embeddings have no classes
            if (one := find_flips(row.artifact, records, names, _images(source))) is not None and one.changed:
                facts.flips.append(one)
            if (of_classes := by_class(row.artifact, records, names)) is not None:
                facts.classes.append(of_classes)
    return facts


def commands(facts: Facts) -> str:
    """The commands that made this run, as they were typed where that is known."""
    root = shlex.quote(str(facts.root))
    lines = [f"vitedge compress --config {shlex.quote(str(facts.root / 'vitedge.toml'))} --run {root}"]
    for name, step in facts.steps.items():
        if name.startswith("build/"):
            flags = [f"--{key} {shlex.quote(str(step.options[key]))}" for key in _BUILD if step.options.get(key)]
            lines.append(" ".join(["vitedge build", *flags, f"--run {root}"]))
    lines += [result.command for result in facts.results.values() if result.command]
    return "\n".join(dict.fromkeys([*lines, f"vitedge report --run {root}"]))


_BUILD = ("target", "precision", "platform")


def _records(bundle: Bundle, row: Row) -> np.ndarray | None:
    """The per-image records that the row was computed from; None where they are gone or were changed."""
    if not row.records:
        return None
    work = (bundle.root / "bench" / "work").resolve()
    path = (work / row.records).resolve()
    if work not in path.parents:
        return None
    found = RecordFile(path, with_logits=False).found
    return found if found.size and hashlib.sha256(found.tobytes()).hexdigest() == row.records_sha256 else None


def _source(bundle: Bundle, result: BenchResult) -> DatasetSource | None:
    """The very images that were measured, or None where they are gone or have changed."""
    data = result.data
    if not data.path or not is_there(data.path):
        return None
    try:
        source = find_source(bundle, data.path, data.limit, data.seed or 0)
    except VitedgeError:
        return None
    same = isinstance(source, DatasetSource) and source.dataset.sha256() == data.sha256
    return source if same and isinstance(source, DatasetSource) else None


def _images(source: DatasetSource | None) -> Callable[[int], str]:
    if source is None:
        return lambda index: ""
    dataset = source.dataset
    return lambda index: thumbnail(dataset, index) if index < len(dataset) else ""
