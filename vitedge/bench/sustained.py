"""Minutes under load: does the machine hold its clocks?"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitedge.bench import latency, stats
from vitedge.bench.process import ArtifactProcess
from vitedge.bench.schema import Sustained
from vitedge.host.clocks import clocks_mhz, temperatures

# Clocks that fell by a tenth, or a median that rose by a twentieth, are more than the usual wavering.
_CLOCK_DROP = 0.9
_SLOWER = 0.05


@dataclass(frozen=True)
class Reading:
    """Clock of the fastest core and temperature of the hottest zone, `s` seconds after the start."""

    s: float
    mhz: int | None
    celsius: float | None


class ClockMonitor(threading.Thread):
    """Reads clocks and temperatures once a second."""

    def __init__(self, root: Path = Path("/"), every_s: float = 1.0) -> None:
        super().__init__(daemon=True)
        self.root, self.every_s, self.done = root, every_s, threading.Event()
        self.begin = time.monotonic()
        self.seen: list[Reading] = []

    def run(self) -> None:
        while True:
            found = temperatures(self.root)
            clocks = clocks_mhz(self.root)
            s = round(time.monotonic() - self.begin, 1)
            self.seen.append(Reading(s, max(clocks, default=None), max(found.values(), default=None)))
            if self.done.wait(self.every_s):
                return

    def stop(self) -> list[Reading]:
        """Ends the monitor: what was read."""
        self.done.set()
        self.join()
        return self.seen


def sustain(process: ArtifactProcess, seconds: float) -> Sustained:
    """Runs the artifact for `seconds`: latency, its drift between the halves, and whether the machine throttled."""
    monitor = ClockMonitor()
    monitor.start()
    try:
        answer = process.ask("sustain", seconds=seconds, timeout_s=seconds + process.timeout_s)
    finally:
        seen = monitor.stop()
    return verdict(answer["starts_ns"], answer["ns"], seen)


def verdict(starts_ns: list[int], spent_ns: list[int], seen: list[Reading]) -> Sustained:
    """The row's `sustained`."""
    slower = latency.drift(starts_ns, spent_ns)
    clocks = [one.mhz for one in seen if one.mhz]
    dropped = min(clocks[len(clocks) // 2 :]) < _CLOCK_DROP * max(clocks) if len(clocks) > 3 else None
    throttled = None if slower is None else bool(dropped) and slower > _SLOWER
    return Sustained(
        seconds=(starts_ns[-1] + spent_ns[-1]) / 1e9,
        latency_ms=stats.summary(np.asarray(spent_ns) / 1e6),
        p50_drift=slower,
        throttled=None if dropped is None else throttled,
        max_celsius=max((one.celsius for one in seen if one.celsius is not None), default=None),
        min_mhz=min(clocks, default=None),
        max_mhz=max(clocks, default=None),
        p50_ms_by_part=_parts(starts_ns, spent_ns),
    )


def _parts(starts_ns: list[int], spent_ns: list[int], parts: int = 60) -> tuple[float | None, ...]:
    """p50 in ms of sixty equal spans of the run, for a plot; None where a span holds no start."""
    end = starts_ns[-1] + spent_ns[-1]
    at = np.minimum(np.asarray(starts_ns, np.float64) * parts / end, parts - 1).astype(int)
    spent = np.asarray(spent_ns) / 1e6
    return tuple(round(float(np.median(spent[at == k])), 4) if (at == k).any() else None for k in range(parts))
