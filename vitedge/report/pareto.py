"""Which artifacts are worth having: the Pareto front, and the one to take for a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def quality(row: Row) -> float | None:
    """Top-1, or agreement with FP32 where the data has no labels; mAP of multi-label models."""
    for key in ("top1", "map", "agreement"):
        if row.get(key) is not None:
            return row[key]
    return None


def p50_ms(row: Row) -> float | None:
    """The row's median latency, None where it was not measured (a simulator, a failure)."""
    return (row.get("latency_ms") or {}).get("p50")


def front(costs: Sequence[float], qualities: Sequence[float]) -> list[bool]:
    """For each point whether no other is at least as good in both and better in one."""
    points = list(zip(costs, qualities, strict=True))
    return [not any((c <= cost and q > good) or (c < cost and q >= good) for c, q in points) for cost, good in points]


def recommend(rows: Sequence[Row], most_drop: float = 1.0, most_ms: float | None = None) -> tuple[Row | None, str]:
    """The fastest row within the budget, and why in words; the smallest one where no latency was measured.

    Args:
        most_drop: percentage points of top-1 that may be lost against FP32 (of agreement, without labels).
        most_ms: limit of p50, or None.
    """
    measured = [row for row in rows if row["status"] == "ok" and row.get("accepted") is not False]
    good = [row for row in measured if (lost := drop(row)) is None or lost <= most_drop]
    if not good:
        return None, f"No artifact keeps within {most_drop:g} points of FP32."
    timed = [row for row in good if p50_ms(row) is not None]
    if most_ms is not None:
        timed = [row for row in timed if (p50_ms(row) or 0.0) <= most_ms]
        if not timed:
            return None, f"No artifact that keeps within {most_drop:g} points of FP32 takes {most_ms:g} ms or less."
    if timed:
        best = min(timed, key=lambda row: p50_ms(row) or 0.0)
        limit = f" and {most_ms:g} ms" if most_ms is not None else ""
        return best, f"The fastest within {most_drop:g} points of FP32{limit}."
    sized = [row for row in good if row.get("size_mib") is not None]
    if not sized:
        return None, "Neither latency nor size is known."
    best = min(sized, key=lambda row: row["size_mib"])
    return best, f"The smallest within {most_drop:g} points of FP32; no latency was measured."


def drop(row: Row) -> float | None:
    """Percentage points lost against FP32: of top-1, of mAP, or of agreement; None where nothing tells."""
    for key in ("delta_top1", "delta_map"):
        if row.get(key) is not None:
            return -100 * row[key]
    return None if row.get("agreement") is None else 100 * (1 - row["agreement"])
