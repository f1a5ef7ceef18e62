"""Artifacts for several budgets in one run folder: a board benches them, and takes the best within its limits."""

from __future__ import annotations

import re
import shutil

from vitedge.bundle import Bundle
from vitedge.search.folders import Folders, link_run
from vitedge.search.result import Point, SearchResult

FAMILY = "family"


def write_family(result: SearchResult) -> list[str]:
    """`family/` below the search, with an artifact for each budget that a point meets; returns the artifacts' names.

    It is a run of the dense model, which the artifacts are held against. Empty where fewer than two budgets are met by
    different points on this machine.
    """
    met: dict[str, Point] = {}
    for budget, point in result.best.items():
        new = point and point.candidate.key not in {other.candidate.key for other in met.values()}
        if point and new and (result.root / point.measured.run / "manifest.json").is_file():
            met[budget] = point
    if len(met) < 2:
        return []
    root = result.root / FAMILY
    shutil.rmtree(root, ignore_errors=True)
    link_run(Folders(result.root).dense, root)
    bundle, names = Bundle.open(root), []
    with bundle.lock():
        for budget, point in met.items():
            name = f"{point.measured.artifact}-{re.sub('[^a-z0-9.]+', '-', budget)}"
            source = result.root / point.measured.run / "build" / point.measured.artifact
            shutil.copytree(source, root / "build" / name)
            files = [path.relative_to(root).as_posix() for path in (root / "build" / name).rglob("*") if path.is_file()]
            facts = Bundle.open(result.root / point.measured.run).facts(f"build/{point.measured.artifact}")
            facts |= {"folder": f"build/{name}"}
            bundle.record(f"build/{name}", sorted(files), ["source/model.safetensors"], facts)
            names.append(name)
    return names
