"""`--gate top1-drop=1.0,p50-ms=20`: limits that every measured row must keep, for CI."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitedge.bench.schema import Row
from vitedge.errors import VitedgeError


@dataclass(frozen=True)
class Limit:
    """A figure of a row, whether the limit is the most or the least, and its unit in words."""

    figure: Callable[[Row], float | None]
    at_most: bool
    unit: str


def _share(key: str) -> Callable[[Row], float | None]:
    return lambda row: None if getattr(row, key) is None else 100 * getattr(row, key)


def _latency(key: str) -> Callable[[Row], float | None]:
    return lambda row: getattr(row.latency_ms, key) if row.latency_ms else None


_GATES = {
    "top1-drop": Limit(
        lambda row: None if row.delta_top1 is None else -100 * row.delta_top1, True, "points of top-1 below FP32"
    ),
    "top1": Limit(_share("top1"), False, "% top-1"),
    "top5": Limit(_share("top5"), False, "% top-5"),
    "agreement": Limit(_share("agreement"), False, "% agreement with FP32"),
    "cosine": Limit(lambda row: row.cosine_mean, False, "cosine to FP32"),
    "cosine-worst": Limit(lambda row: row.cosine_worst, False, "cosine to FP32, of the worst 1 %"),
    "sqnr-db": Limit(lambda row: row.sqnr_db, False, "dB logit SQNR"),
    "size-mib": Limit(lambda row: row.size_mib, True, "MiB on disk"),
    "rss-mib": Limit(lambda row: row.peak_rss_mib, True, "MiB peak memory"),
    "ips": Limit(lambda row: row.throughput_ips, False, "images a second"),
    "energy-mj": Limit(lambda row: row.energy_mj, True, "mJ an image"),
}
_GATES |= {f"{p}-ms": Limit(_latency(p), True, f"ms {p}") for p in ("mean", "p50", "p90", "p95", "p99", "max")}


@dataclass(frozen=True)
class Gate:
    """One limit: `name=limit`."""

    name: str
    limit: float


def parse_gates(text: str) -> list[Gate]:
    """The gates in `name=number,name=number`. Raises VitedgeError at the first that is none."""
    out = []
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, _, value = part.partition("=")
        if name not in _GATES:
            near = difflib.get_close_matches(name, _GATES, 1)
            hint = f"Did you mean '{near[0]}'? " if near else ""
            raise VitedgeError(f"There is no gate '{name}'.", "", f"{hint}Known are {', '.join(_GATES)}.")
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if not math.isfinite(limit):
            raise VitedgeError(f"The gate '{part}' has no number.", "", f"Write it as {name}=1.0")
        out.append(Gate(name, limit))
    return out


def check_gates(gates: Sequence[Gate], rows: Sequence[Row]) -> list[str]:
    """What the rows violate, a line each; empty where all is well.

    A row that failed violates every gate; one that can't run here is left out, as is a figure that a simulator does not
    give, and the source model, which nobody ships. A gate that no row could be held to is violated too: nothing was
    checked.
    """
    out = [f"{row.artifact} failed: {row.reason}" for row in rows if row.status == "failed" and gates]
    for gate in gates:
        limit, judged = _GATES[gate.name], 0
        for row in rows:
            value = limit.figure(row) if row.ok and row.role == "artifact" else None
            if value is None:
                continue
            judged += 1
            if value > gate.limit if limit.at_most else value < gate.limit:
                bound = "at most" if limit.at_most else "at least"
                out.append(f"{row.artifact}: {value:.4g} {limit.unit}, {bound} {gate.limit:g} is asked")
        if not judged:
            out.append(f"{gate.name}: no row has this figure, so nothing was checked")
    return out


def pick(gates: Sequence[Gate], rows: Sequence[Row]) -> Row | None:
    """The artifact that keeps all limits on this machine and is nearest to the source model, the faster of equal ones;
    None where none keeps them."""
    good = [row for row in rows if row.ok and row.role == "artifact" and not check_gates(gates, [row])]
    return max(good, key=lambda row: (row.quality or 0.0, -(row.p50_ms or math.inf)), default=None)
