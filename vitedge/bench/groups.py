"""The artifacts of a run on their way through it, in groups that fit into memory together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vitedge.bench.artifact import Artifact
from vitedge.bench.schema import Row


@dataclass
class Job:
    """One artifact on its way through the run: `row` is what the JSON gets, `records` are of its images."""

    artifact: Artifact
    row: Row
    records: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def timed(self) -> bool:
        """Whether it can be timed: what failed or is a simulator can't."""
        return self.row.ok and self.row.device not in (None, "simulator")

    def update(self, **figures: Any) -> None:
        """Puts figures into the row."""
        self.row = replace(self.row, **figures)


def groups(jobs: list[Job], base: Job | None, available_mib: float | None) -> list[list[Job]]:
    """The jobs in groups that fit into four fifths of the free memory together, each with the base in it."""
    room = 0.8 * (available_mib or 1e12)
    out: list[list[Job]] = []
    held = 0.0
    for job in [job for job in jobs if job is not base]:
        need = job.row.peak_rss_mib or 0.0
        if not out or held + need > room:
            out.append([base] if base else [])
            held = (base.row.peak_rss_mib or 0.0) if base else 0.0
        out[-1].append(job)
        held += need
    return out or ([[base]] if base else [])
