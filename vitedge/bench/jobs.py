"""How to measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
        golden: whether a pack's golden references are checked first.
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
    golden: bool = True
