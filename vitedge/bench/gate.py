"""`--gate top1-drop=1.0,p50-ms=20`: limits that every measured row must keep, for CI."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any

from vitedge.errors import VitedgeError


def _drop(row: dict[str, Any]) -> float | None:
    return None if row.get("delta_top1") is None else -100 * row["delta_top1"]


def _percent(key: str) -> Any:
    return lambda row: None if row.get(key) is None else 100 * row[key]


def _latency(key: str) -> Any:
    return lambda row: (row.get("latency_ms") or {}).get(key)


# Name -> (figure of a row, whether the limit is the most or the least, unit in words)
_GATES: dict[str, tuple[Any, bool, str]] = {
    "top1-drop": (_drop, True, "points of top-1 below FP32"),
    "top1": (_percent("top1"), False, "% top-1"),
    "top5": (_percent("top5"), False, "% top-5"),
    "agreement": (_percent("agreement"), False, "% agreement with FP32"),
    "sqnr-db": (lambda row: row.get("sqnr_db"), False, "dB logit SQNR"),
    "size-mib": (lambda row: row.get("size_mib"), True, "MiB on disk"),
    "rss-mib": (lambda row: row.get("peak_rss_mib"), True, "MiB peak memory"),
    "ips": (lambda row: row.get("throughput_ips"), False, "images a second"),
    "energy-mj": (lambda row: row.get("energy_mj"), True, "mJ an image"),
}
_GATES |= {f"{p}-ms": (_latency(p), True, f"ms {p}") for p in ("mean", "p50", "p90", "p95", "p99", "max")}


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


def check_gates(gates: list[Gate], rows: list[dict[str, Any]]) -> list[str]:
    """What the rows violate, a line each; empty where all is well.

    A row that failed violates every gate; one that can't run here is left out, as is a figure that a
    simulator does not give. A gate that no row could be held to is violated too: nothing was checked.
    """
    out = [f"{row['artifact']} failed: {row['reason']}" for row in rows if row["status"] == "failed" and gates]
    for gate in gates:
        figure, at_most, unit = _GATES[gate.name]
        judged = 0
        for row in rows:
            value = figure(row) if row["status"] == "ok" else None
            if value is None:
                continue
            judged += 1
            if value > gate.limit if at_most else value < gate.limit:
                bound = "at most" if at_most else "at least"
                out.append(f"{row['artifact']}: {value:.4g} {unit}, {bound} {gate.limit:g} is asked")
        if not judged:
            out.append(f"{gate.name}: no row has this figure, so nothing was checked")
    return out
