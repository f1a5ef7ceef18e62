"""Timing a runner inside its own process, after MLPerf Inference's and trtexec's methods.

Times are of `time.perf_counter_ns` around `infer` alone, with the garbage collector off. The input changes
from call to call, as a camera's does, within a small set of images that is prepared before.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitedge.bench import stats
from vitedge.bench.stats import Summary

Infer = Callable[[np.ndarray], Any]
Clock = Callable[[], int]  # nanoseconds


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """The collector would pause some inferences and not others."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def time_calls(
    infer: Infer, inputs: Sequence[np.ndarray], calls: int, clock: Clock = time.perf_counter_ns
) -> list[int]:
    """The duration of each of `calls` inferences over the inputs in turn, in ns."""
    out = [0] * calls
    size = len(inputs)
    with no_garbage_collection():
        for call in range(calls):
            pixels = inputs[call % size]
            start = clock()
            infer(pixels)
            out[call] = clock() - start
    return out


@dataclass(frozen=True)
class WarmUp:
    """How a runner was warmed up: inferences, seconds, and whether it became steady; `median_ns` at the
    end."""

    calls: int
    seconds: float
    steady: bool
    median_ns: int


def warm_up(
    infer: Infer,
    inputs: Sequence[np.ndarray],
    *,
    least_s: float = 0.5,
    most_s: float = 5.0,
    tolerance: float = 0.03,
    clock: Clock = time.perf_counter_ns,
) -> WarmUp:
    """Runs until the medians of three windows in a row lie within `tolerance`, for `least_s` to `most_s`.

    A window is the fifth of `least_s`, or three inferences, whichever is longer.
    """
    begin = clock()
    first = time_calls(infer, inputs, 2, clock)[-1]
    window = max(3, round(least_s * 1e9 / 5 / max(first, 1)))
    window = min(window, 10_000)
    calls, medians = 2, [0.0, 0.0]
    while True:
        median = float(np.median(time_calls(infer, inputs, window, clock)))
        calls += window
        elapsed = (clock() - begin) / 1e9
        medians = [*medians[-2:], median]
        steady = max(medians) <= min(medians) * (1 + tolerance)
        if (steady and elapsed >= least_s) or elapsed >= most_s:
            return WarmUp(calls, elapsed, steady, round(median))


def device_times(runner: Any, inputs: Sequence[np.ndarray], calls: int) -> dict[str, Summary] | None:
    """{"copy_in_ms", "compute_ms", "copy_out_ms"} -> summaries by the device's own clock over `calls`
    inferences.

    For runners that keep `last_times`, as TensorRT's does from CUDA events; None for others.
    """
    runner.infer(inputs[0])
    if runner.last_times is None:
        return None
    rows = []
    for call in range(calls):
        runner.infer(inputs[call % len(inputs)])
        rows.append(vars(runner.last_times))
    return {name: stats.summary(np.array([row[name] for row in rows])) for name in rows[0]}


def sustained(
    infer: Infer, inputs: Sequence[np.ndarray], seconds: float, clock: Clock = time.perf_counter_ns
) -> tuple[list[int], list[int]]:
    """Back-to-back inferences until `seconds` have passed at the end of one: (start of each since the
    beginning, duration), in ns."""
    starts: list[int] = []
    spent: list[int] = []
    size, limit = len(inputs), int(seconds * 1e9)
    with no_garbage_collection():
        begin = clock()
        while True:
            start = clock()
            infer(inputs[len(spent) % size])
            end = clock()
            spent.append(end - start)
            starts.append(start - begin)
            # The end of the last inference decides, not a later reading: the run reported is never too short.
            if end - begin >= limit:
                return starts, spent


def throughput(runners: Sequence[Infer], inputs: Sequence[np.ndarray], seconds: float) -> tuple[int, float]:
    """All runners at once, one thread each, for `seconds`: (images done, seconds taken).

    Every runner finishes the batch that it began, and the time goes on until the last one has.
    """
    done = [0] * len(runners)
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(runners) + 1)
    stop = threading.Event()

    def work(at: int) -> None:
        barrier.wait()
        call = at
        try:
            while not stop.is_set():
                pixels = inputs[call % len(inputs)]
                runners[at](pixels)
                done[at] += len(pixels)
                call += 1
        except BaseException as error:  # told to the main thread, which raises it
            errors.append(error)

    threads = [threading.Thread(target=work, args=(at,), daemon=True) for at in range(len(runners))]
    for thread in threads:
        thread.start()
    with no_garbage_collection():
        barrier.wait()
        begin = time.perf_counter_ns()
        stop.wait(seconds)
        stop.set()
        for thread in threads:
            thread.join()
        taken = (time.perf_counter_ns() - begin) / 1e9
    if errors:
        raise errors[0]
    return sum(done), taken


def drift(starts_ns: Sequence[int], spent_ns: Sequence[int]) -> float | None:
    """How much slower the second half of a sustained run is: its median over the first half's, minus 1."""
    if len(spent_ns) < 4:
        return None
    starts, spent = np.asarray(starts_ns, np.float64), np.asarray(spent_ns, np.float64)
    late = starts >= (starts[-1] + spent[-1]) / 2
    if late.all() or not late.any():
        return None
    return float(np.median(spent[late]) / np.median(spent[~late]) - 1)
