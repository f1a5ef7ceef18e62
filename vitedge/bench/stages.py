"""The way from an image file to names of classes: its three stages apart, and together."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from vitedge.bench import stats
from vitedge.bench.latency import no_garbage_collection
from vitedge.bench.stats import Summary
from vitedge.data.preprocess import Preprocess
from vitedge.targets.base import Runner


def top_classes(logits: np.ndarray, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The `count` most probable classes and their softmax probabilities of logits [classes], best first."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = shifted / shifted.sum()
    order = np.argsort(-probabilities, kind="stable")[:count]
    return order, probabilities[order]


def time_stages(runner: Runner, files: list[Path], preprocess: Preprocess, calls: int) -> dict[str, Summary]:
    """Summaries in ms of "preprocess" (decode, resize, crop), "inference", "postprocess" (softmax, top 5),
    and "end_to_end", over `calls` files in turn, one image at a time. A fixed batch is filled with the same
    image."""
    times = np.zeros((calls, 4))
    with no_garbage_collection():
        for call in range(-2, calls):  # two untimed
            stamps = [time.perf_counter_ns()]
            pixels = preprocess.apply(preprocess.open(files[call % len(files)]))[None]
            stamps.append(time.perf_counter_ns())
            if runner.batch and runner.batch > 1:
                pixels = np.repeat(pixels, runner.batch, 0)
            logits = runner.infer(pixels)
            stamps.append(time.perf_counter_ns())
            top_classes(logits[0])
            stamps.append(time.perf_counter_ns())
            if call >= 0:
                times[call, :3] = np.diff(stamps)
                times[call, 3] = stamps[-1] - stamps[0]
    names = ("preprocess", "inference", "postprocess", "end_to_end")
    return {name: stats.summary(times[:, at] / 1e6) for at, name in enumerate(names)}
