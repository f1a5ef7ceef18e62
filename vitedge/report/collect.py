"""Reads all that the report shows out of a run folder; draws nothing."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitedge.bench import result as results
from vitedge.bench.from_bundle import find_classes, find_source
from vitedge.bench.source import DatasetSource
from vitedge.bundle import Bundle
from vitedge.errors import VitedgeError
from vitedge.report.flips import Flips, find_flips, thumbnail
from vitedge.tables import Table, load_tables


@dataclass
class Facts:
    """What a run has: `results` are bench JSONs by file name, `steps` the manifest's, in their order."""

    root: Path
    results: dict[str, dict[str, Any]]
    steps: dict[str, dict[str, Any]]
    artifacts: dict[str, dict[str, Any]]
    tables: list[Table]
    problems: list[str]
    flips: list[Flips] = field(default_factory=list)
    source: DatasetSource | None = None


def collect(bundle: Bundle) -> Facts:
    """The facts of a run. Raises VitedgeError where it was never measured."""
    found, problems = {}, []
    for path in sorted((bundle.root / "bench").glob("*.json")):
        try:
            found[path.stem] = results.load(path)
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
        {name: step.model_dump() for name, step in manifest.steps.items()},
        {name: entry.model_dump() for name, entry in manifest.artifacts.items()},
        tables,
        problems + wrong,
    )
    names = find_classes(bundle)
    for result in found.values():
        source = _source(bundle, result)
        facts.source = facts.source or source
        for row in result["rows"]:
            if row["status"] == "ok" and row.get("records"):
                path = bundle.root / "bench" / "work" / row["records"]
                one = find_flips(row["artifact"], path, names, _images(source))
                if one is not None and one.changed:
                    facts.flips.append(one)
    return facts


def commands(facts: Facts) -> str:
    """The commands that make this run again, from its own vitedge.toml."""
    root = shlex.quote(str(facts.root))
    lines = [f"vitedge compress --config {shlex.quote(str(facts.root / 'vitedge.toml'))} --run {root}"]
    for name, step in facts.steps.items():
        if name.startswith("build/") and isinstance(step.get("options"), dict):
            options = step["options"]
            parts = [f"--target {options['target']}"] if options.get("target") else []
            parts += [f"--precision {options['precision']}"] if options.get("precision") else []
            parts += [f"--platform {options['platform']}"] if options.get("platform") else []
            lines.append(" ".join(["vitedge build", *parts, f"--run {root}"]))
    for result in facts.results.values():
        command = result.get("command")
        if command and command not in lines:
            lines.append(command)
    return "\n".join([*lines, f"vitedge report --run {root}"])


def _source(bundle: Bundle, result: dict[str, Any]) -> DatasetSource | None:
    """The very images that were measured, or None where they are gone or have changed."""
    data = result["data"]
    if not data.get("path") or not Path(data["path"]).is_dir():
        return None
    try:
        source = find_source(bundle, data["path"], data.get("limit"), data.get("seed") or 0)
        same = isinstance(source, DatasetSource) and source.dataset.sha256() == data["sha256"]
    except VitedgeError:
        return None
    return source if same and isinstance(source, DatasetSource) else None


def _images(source: DatasetSource | None) -> Callable[[int], str]:
    if source is None:
        return lambda index: ""
    dataset = source.dataset
    return lambda index: thumbnail(dataset.path(index)) if index < len(dataset) else ""
