"""What is to be measured, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from vitedge.bench.row import Artifact

Scenario = Literal["single", "throughput", "sustained"]


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        scenarios: "single" (one stream), "throughput" (batches, parallel contexts), "sustained" (minutes).
        batch: images an inference of artifacts whose batch is free.
        threads: processor threads of a runner, or None for its own default.
        cores: processors that the rows are bound to, or None for all.
        contexts: parallel runners of the throughput scenario.
        seconds: shortest time that a row's latency is measured.
        launches: how many times the processes are started anew for it (see `rounds`).
        sustained_s: length of the sustained scenario.
        timeout_s: the longest that a row may take for one command before it counts as hung.
        row_limit_s: the longest that a row may take for its accuracy.
        memory_limit_mib: address space that a row's process may use, or None.
        accuracy: whether the images are evaluated at all.
    """

    scenarios: tuple[Scenario, ...] = ("single",)
    batch: int = 1
    threads: int | None = None
    cores: tuple[int, ...] | None = None
    contexts: int = 1
    seconds: float = 3.0
    launches: int = 5
    sustained_s: float = 120.0
    timeout_s: float = 300.0
    row_limit_s: float = 6 * 3600.0
    memory_limit_mib: int | None = None
    accuracy: bool = True


@dataclass
class Job:
    """One artifact on its way through the run: `row` is what the JSON gets."""

    artifact: Artifact
    row: dict[str, Any]
    records: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def timed(self) -> bool:
        return self.row["status"] == "ok" and self.row["device"] != "simulator"


def groups(jobs: list[Job], base: Job | None, available_mib: float | None) -> list[list[Job]]:
    """The jobs in groups that fit into four fifths of the free memory together, each with the base in it."""
    room = 0.8 * (available_mib or 1e12)
    out: list[list[Job]] = []
    held = 0.0
    for job in [job for job in jobs if job is not base]:
        need = job.row["peak_rss_mib"] or 0.0
        if not out or held + need > room:
            out.append([base] if base else [])
            held = (base.row["peak_rss_mib"] or 0.0) if base else 0.0
        out[-1].append(job)
        held += need
    return out or ([[base]] if base else [])
