"""Bench results of several runs and boards side by side; what is worse beyond the noise is marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitedge.bench import show

# Two runs on one machine at different times differ by this much for reasons that no interval of one run knows
# (placement in memory, clocks, temperature), so a smaller change of latency is never called a regression.
FLOOR = 0.03


@dataclass(frozen=True)
class Change:
    """A figure of a later file against the first: its interval of 95 %, and whether it is worse beyond it."""

    text: str
    worse: bool
    better: bool

    @property
    def mark(self) -> str:
        """The text with "▼" where it is worse and "▲" where it is better beyond the noise."""
        return self.text + (" ▼" if self.worse else " ▲" if self.better else "")


def compare(named: Sequence[tuple[str, dict[str, Any]]]) -> tuple[list[str], list[list[Any]], list[str]]:
    """Columns and rows of a table, one row an artifact and file, and a line for each regression.

    Every file is held against the first one that has the same artifact. Latencies are compared only between
    runs on the same kind of machine.
    """
    columns = [
        "artifact",
        "file",
        "machine",
        "top-1",
        "against first",
        "p50 ms",
        "against first",
        "peak MiB",
        "size MiB",
    ]
    rows: list[list[Any]] = []
    worse: list[str] = []
    for artifact in dict.fromkeys(row["artifact"] for _, result in named for row in result["rows"]):
        first: tuple[dict[str, Any], dict[str, Any]] | None = None
        for name, result in named:
            row = next((one for one in result["rows"] if one["artifact"] == artifact), None)
            if row is None:
                continue
            if row["status"] != "ok":
                rows.append([artifact, name, machine(result), f"{row['status']}: {row['reason']}"[:60], *[None] * 5])
                if first is not None and row["status"] == "failed":
                    worse.append(f"{artifact}, {name}: {row['reason']}")
                continue
            top1 = latency = None
            if first is not None:
                base_result, base = first
                top1 = accuracy_change(base, row, same_data(base_result, result))
                latency = latency_change(base, row) if machine(base_result) == machine(result) else None
                for what, change in (("top-1", top1), ("p50", latency)):
                    if change is not None and change.worse:
                        worse.append(f"{artifact}, {name}: {what} {change.text}")
            cells = [show.percent(row["top1"]), top1 and top1.mark]
            p50 = (row["latency_ms"] or {}).get("p50")
            cells += [None if p50 is None else f"{p50:.2f}", latency and latency.mark]
            memory, size = row["peak_rss_mib"], row["size_mib"]
            cells += [None if memory is None else f"{memory:.0f}", None if size is None else f"{size:.1f}"]
            rows.append([artifact, name, machine(result), *cells])
            first = first or (result, row)
    return columns, rows, worse


def machine(result: dict[str, Any]) -> str:
    """The kind of machine in a few words."""
    host = result["host"]
    return host.get("name") or host.get("board") or f"{host.get('cpu')}, {host.get('cores')} cores"


def same_data(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two results are of the same images."""
    keys = ("sha256", "n")
    return all(a["data"].get(key) == b["data"].get(key) for key in keys) and a["data"].get("sha256") is not None


def accuracy_change(base: dict[str, Any], row: dict[str, Any], same: bool) -> Change | None:
    """Top-1 against the base's, on the same images; the interval takes them as independent, so it is wide."""
    if not same or base["top1"] is None or row["top1"] is None:
        return None
    # Newcombe's hybrid score interval (method 10, "Interval estimation for the difference between independent
    # proportions", Statistics in Medicine 17, 1998), out of the two Wilson intervals.
    delta = row["top1"] - base["top1"]
    (low_a, high_a), (low_b, high_b) = row["top1_ci95"], base["top1_ci95"]
    low = delta - math.hypot(row["top1"] - low_a, high_b - base["top1"])
    high = delta + math.hypot(high_a - row["top1"], base["top1"] - low_b)
    text = f"{100 * delta:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return Change(text, worse=high < 0, better=low > 0)


def latency_change(base: dict[str, Any], row: dict[str, Any], resamples: int = 1000) -> Change | None:
    """p50 over the base's p50, by a bootstrap over the kept times of both; within 3 % nothing is called a
    change."""
    a, b = ((one["latency_ms"] or {}).get("samples") for one in (row, base))
    if not a or not b:
        return None
    rng = np.random.default_rng(0)
    medians = [np.median(np.asarray(x)[rng.integers(0, len(x), (resamples, len(x)))], 1) for x in (a, b)]
    low, high = np.quantile(medians[0] / medians[1], (0.025, 0.975))
    ratio = row["latency_ms"]["p50"] / base["latency_ms"]["p50"]
    text = f"x {ratio:.3f} [{low:.3f}, {high:.3f}]"
    return Change(text, worse=bool(low > 1 + FLOOR), better=bool(high < 1 - FLOOR))
