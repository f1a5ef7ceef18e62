"""The run folders of a search: what candidates have in common is made once and linked into each of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from vitedge.bundle import Bundle
from vitedge.files import locked, temporary_name
from vitedge.manifest import MANIFEST
from vitedge.search.space import Candidate

# What a copy of a run does not take along: it is of the other run alone.
_OWN = {".lock", ".unfinished", "build", "bench", "report.html", "report.md"}


class Folders:
    """Below the search's folder: `stages/` with a float run for each pruning, `runs/` with one for each candidate."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def dense(self) -> Path:
        """The float run without pruning, which all others start from."""
        return self.root / "stages" / "dense"

    def stage(self, candidate: Candidate) -> Path:
        """The float run of the candidate's pruning."""
        if not candidate.pruning:
            return self.dense
        return self.root / "stages" / sha256(candidate.pruning.encode()).hexdigest()[:12]

    def conditioned(self, stage: Path, preset: str) -> Path:
        """The run of that stage, conditioned for INT8 with that preset."""
        return stage.with_name(f"{stage.name}-conditioned{'-full' if preset == 'full' else ''}")

    def run(self, candidate: Candidate) -> Path:
        """The candidate's run."""
        return self.root / "runs" / candidate.key

    @contextmanager
    def held(self, folder: Path) -> Iterator[None]:
        """Waits until no other worker of this machine works in that folder, and keeps them out."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock"), "making", wait_s=24 * 3600):
            yield


def link_run(source: Path, to: Path) -> None:
    """A run folder `to` with the same model steps as `source`, whose files are linked, not copied.

    vitedge never writes into a file that is there: a new one takes its place, in one of the two folders alone. An
    existing `to` is left as it is.
    """
    if (to / MANIFEST).is_file():
        return
    part = to.with_name(temporary_name(to.name))
    part.parent.mkdir(parents=True, exist_ok=True)
    ignore = shutil.ignore_patterns(*_OWN)
    shutil.copytree(
        source, part, ignore=lambda at, names: ignore(at, names) if Path(at) == source else [], copy_function=_link
    )
    shutil.rmtree(to, ignore_errors=True)
    part.rename(to)
    bundle = Bundle.open(to)
    with bundle.lock():
        for name in [n for n in bundle.manifest.steps if n.startswith(("build/", "bench"))]:
            bundle.drop_step(name)


def _link(source: str, to: str) -> None:
    try:
        os.link(source, to)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, to)
