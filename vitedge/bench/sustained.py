"""Minutes under load: does the machine hold its clocks?"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.bench import host, latency, stats
from vitedge.bench.row import Row

# Clocks that fell by a tenth, or a median that rose by a twentieth, are more than the usual wavering.
_CLOCK_DROP = 0.9
_SLOWER = 0.05


class Watch(threading.Thread):
    """Reads clocks and temperatures once a second."""

    def __init__(self, root: Path = Path("/"), every_s: float = 1.0) -> None:
        super().__init__(daemon=True)
        self.root, self.every_s, self.done = root, every_s, threading.Event()
        self.begin = time.monotonic()
        self.seen: list[dict[str, Any]] = []

    def run(self) -> None:
        while True:
            temperatures = host.temperatures(self.root)
            clocks = host.clocks_mhz(self.root)
            self.seen.append(
                {
                    "s": round(time.monotonic() - self.begin, 1),
                    "mhz": max(clocks) if clocks else None,
                    "celsius": max(temperatures.values()) if temperatures else None,
                }
            )
            if self.done.wait(self.every_s):
                return

    def stop(self) -> list[dict[str, Any]]:
        """Ends the watch: what was seen, as {"s", "mhz", "celsius"} of the fastest core and the hottest
        zone."""
        self.done.set()
        self.join()
        return self.seen


def sustain(row: Row, seconds: float) -> dict[str, Any]:
    """Runs the row for `seconds`: latency, its drift between the halves, and whether the machine
    throttled."""
    watch = Watch()
    watch.start()
    try:
        answer = row.ask("sustain", seconds=seconds, timeout_s=seconds + row.timeout_s)
    finally:
        seen = watch.stop()
    return verdict(answer["starts_ns"], answer["ns"], seen)


def verdict(starts_ns: list[int], spent_ns: list[int], seen: list[dict[str, Any]]) -> dict[str, Any]:
    """The row's `sustained`. `throttled` is None where neither clocks nor a slower second half can tell."""
    slower = latency.drift(starts_ns, spent_ns)
    clocks = [one["mhz"] for one in seen if one["mhz"]]
    dropped = min(clocks[len(clocks) // 2 :]) < _CLOCK_DROP * max(clocks) if len(clocks) > 3 else None
    throttled = None if slower is None else bool(dropped) and slower > _SLOWER
    temperatures = [one["celsius"] for one in seen if one["celsius"] is not None]
    return {
        "seconds": (starts_ns[-1] + spent_ns[-1]) / 1e9,
        "latency_ms": stats.summary(np.asarray(spent_ns) / 1e6),
        "p50_drift": slower,
        "throttled": None if dropped is None else throttled,
        "max_celsius": max(temperatures, default=None),
        "min_mhz": min(clocks, default=None),
        "max_mhz": max(clocks, default=None),
        "p50_ms_by_part": _parts(starts_ns, spent_ns),
    }


def _parts(starts_ns: list[int], spent_ns: list[int], parts: int = 60) -> list[float | None]:
    """p50 in ms of sixty equal spans of the run, for a plot; None where a span holds no start."""
    end = starts_ns[-1] + spent_ns[-1]
    at = np.minimum(np.asarray(starts_ns, np.float64) * parts / end, parts - 1).astype(int)
    spent = np.asarray(spent_ns) / 1e6
    return [round(float(np.median(spent[at == k])), 4) if (at == k).any() else None for k in range(parts)]
