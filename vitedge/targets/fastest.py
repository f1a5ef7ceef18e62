"""Which of several forms of a model is fastest here: timed in turns on the machine that builds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import numpy as np

from vitedge.targets.base import Runner

# Another form than the first must be faster by this share to be taken: differences below come and go.
MARGIN = 0.02
ROUNDS = 3


def median_times(forms: Mapping[str, Callable[[], Runner]], pixels: np.ndarray) -> dict[str, float]:
    """Form -> median milliseconds of an inference on `pixels` [N, H, W, C].

    One form is open at a time, since the waiting threads of one runtime slow another one down, and all have a
    turn in each round, since machines drift.
    """
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, open_runner in forms.items():
            runner = open_runner()
            try:
                for _ in range(3):
                    runner.infer(pixels)
                spent, calls = 0.0, 0
                while calls < 5 or (spent < 0.3 and calls < 200):
                    started = time.perf_counter()
                    runner.infer(pixels)
                    times[name].append(1e3 * (time.perf_counter() - started))
                    spent += times[name][-1] / 1e3
                    calls += 1
            finally:
                runner.close()
    return {name: round(median(values), 4) for name, values in times.items()}


def choose(times: Mapping[str, float]) -> str:
    """The fastest form, and the first one where none is faster by `MARGIN`."""
    first = next(iter(times))
    best = min(times, key=lambda name: times[name])
    return best if times[best] < times[first] * (1 - MARGIN) else first
