"""Bench results of several runs and boards side by side; what is worse beyond the noise is marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vitedge.bench import show, stats
from vitedge.bench.result import BenchResult
from vitedge.bench.schema import Row
from vitedge.tables import Cell, Table

# Two runs on one machine at different times differ by this much for reasons that no interval of one run knows
# (placement in memory, clocks, temperature), so a smaller change of latency is never called a regression.
FLOOR = 0.03


@dataclass(frozen=True)
class Change:
    """A figure of a later file against the first: its interval of 95 %, and whether it is worse beyond it."""

    text: str
    worse: bool
    better: bool
    figure: str = ""
    paired: bool = True

    @property
    def mark(self) -> str:
        """The text with "▼" where it is worse and "▲" where it is better beyond the noise."""
        return self.text + (" ▼" if self.worse else " ▲" if self.better else "")


@dataclass(frozen=True)
class Comparison:
    """Rows of artifacts, and a line for each regression."""

    table: Table
    worse: list[str]
    compared: int = 0
    unpaired: bool = False

    @property
    def verdict(self) -> str:
        """What the comparison says, in a sentence or two."""
        if not self.compared:
            return "Nothing was compared: no artifact was measured twice on the same images or kind of machine."
        said = f"{len(self.worse)} became worse." if self.worse else "Nothing became worse beyond the noise."
        if not self.unpaired:
            return said
        return f"{said} A file of an earlier version does not say what each image was: of it only a large loss is seen."

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        keys = ["artifact", "file", "machine", "top1", "top1_change", "p50_ms", "p50_change", "peak_mib", "size_mib"]
        return {"rows": [dict(zip(keys, row, strict=True)) for row in self.table.rows], "worse": self.worse}


def compare(named: Sequence[tuple[str, BenchResult]]) -> Comparison:
    """Every result held against the first one that has the same artifact.

    Accuracies of the same images are compared in pairs, image by image. Latencies are compared only between runs on the
    same kind of machine.
    """
    columns = ["artifact", "file", "machine", "top-1 (%)", "top-1 against first (points)", "p50 (ms)"]
    columns += ["p50 over first", "peak (MiB)", "size (MiB)"]
    rows: list[list[Cell]] = []
    worse: list[str] = []
    unpaired, compared = False, 0
    for artifact in dict.fromkeys(row.artifact for _, result in named for row in result.rows):
        first: tuple[BenchResult, Row] | None = None
        for name, result in named:
            row = result.row(artifact)
            if row is None:
                continue
            if not row.ok:
                rows.append([artifact, name, f"{row.status}: {row.reason}"[:60], *[None] * 6])
                if first is not None and row.status == "failed":
                    worse.append(f"{artifact}, {name}: {row.reason}")
                continue
            accuracy = latency = None
            if first is not None:
                base_result, base = first
                accuracy = accuracy_change(base, row, same_data(base_result, result))
                unpaired |= accuracy is not None and not accuracy.paired
                latency = latency_change(base, row) if machine(base_result) == machine(result) else None
                compared += (accuracy is not None) + (latency is not None)
                for figure, change in ((accuracy.figure if accuracy else "", accuracy), ("p50", latency)):
                    if change is not None and change.worse:
                        worse.append(f"{artifact}, {name}: {figure} {change.text}")
            marks = [None if change is None else change.mark for change in (accuracy, latency)]
            cells: list[Cell] = [show.percent(row.top1), marks[0], row.p50_ms, marks[1], row.peak_rss_mib, row.size_mib]
            rows.append([artifact, name, machine(result), *cells])
            first = first or (result, row)
    digits = {"top-1 (%)": 1, "p50 (ms)": 2, "peak (MiB)": 0, "size (MiB)": 1}
    note = "▼ worse, ▲ better than in the first file, beyond the 95 % interval (and 3 % of latency)."
    return Comparison(Table("Compared", columns, rows, note, decimals=digits), worse, compared, unpaired)


def machine(result: BenchResult) -> str:
    """The kind of machine in a few words."""
    host = result.host
    return host.name or host.board or f"{host.cpu}, {host.cores} cores"


def same_data(a: BenchResult, b: BenchResult) -> bool:
    """Whether two results are of the same images."""
    return a.data.sha256 is not None and (a.data.sha256, a.data.n) == (b.data.sha256, b.data.n)


def accuracy_change(base: Row, row: Row, same: bool) -> Change | None:
    """The accuracy against the base's, on the same images: in pairs where both say what each image was.

    Without labels agreement with the reference is compared. Files of earlier versions know only how many images were
    right: their interval takes the two as independent, and so is too wide.
    """
    if not same:
        return None
    figures: tuple[tuple[str, Literal["right", "agrees"]], ...] = (("top-1", "right"), ("agreement", "agrees"))
    for figure, which in figures:
        pair = _pairs(base, row, which)
        if pair is not None:
            # Of several labels an image is right where all of them are.
            figure = "images with all labels right" if figure == "top-1" and row.top1 is None else figure
            found = stats.paired_difference(*pair)
            return _change(found.delta, found.low, found.high, figure, paired=True)
    if base.top1 is None or row.top1 is None or base.top1_ci95 is None or row.top1_ci95 is None:
        return None
    # Newcombe's hybrid score interval (method 10, "Interval estimation for the difference between independent
    # proportions", Statistics in Medicine 17, 1998), out of the two Wilson intervals.
    delta = row.top1 - base.top1
    (low_a, high_a), (low_b, high_b) = row.top1_ci95, base.top1_ci95
    low = delta - math.hypot(row.top1 - low_a, high_b - base.top1)
    high = delta + math.hypot(high_a - row.top1, base.top1 - low_b)
    return _change(delta, low, high, "top-1", paired=False)


def _pairs(base: Row, row: Row, which: Literal["right", "agrees"]) -> tuple[np.ndarray, np.ndarray] | None:
    a, b = row.by_image, base.by_image
    if a is None or b is None or a.n == 0 or (a.n, a.images_sha256) != (b.n, b.images_sha256):
        return None
    ours, theirs = a.bits(which), b.bits(which)
    return None if ours is None or theirs is None else (ours, theirs)


def _change(delta: float, low: float, high: float, figure: str, *, paired: bool) -> Change:
    text = f"{100 * delta:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return Change(text, worse=high < 0, better=low > 0, figure=figure, paired=paired)


def latency_change(base: Row, row: Row, resamples: int = 1000) -> Change | None:
    """p50 over the base's p50, by a bootstrap over the recorded times of both; within 3 % nothing is called a
    change."""
    a, b = row.latency_ms, base.latency_ms
    if a is None or b is None or not a.samples or not b.samples:
        return None
    rng = np.random.default_rng(0)
    draws = [np.asarray(x)[rng.integers(0, len(x), (resamples, len(x)))] for x in (a.samples, b.samples)]
    low, high = np.quantile(np.median(draws[0], 1) / np.median(draws[1], 1), (0.025, 0.975))
    text = f"x {a.p50 / b.p50:.3f} [{low:.3f}, {high:.3f}]"
    return Change(text, worse=bool(low > 1 + FLOOR), better=bool(high < 1 - FLOOR), figure="p50")
