"""Which artifacts are worth having: the Pareto front, and the one to take for a budget."""

from __future__ import annotations

from collections.abc import Sequence

from vitedge.bench.schema import Row


def front(costs: Sequence[float], qualities: Sequence[float]) -> list[bool]:
    """For each point whether no other is at least as good in both and better in one."""
    points = list(zip(costs, qualities, strict=True))
    return [not any((c <= cost and q > good) or (c < cost and q >= good) for c, q in points) for cost, good in points]


def candidates(rows: Sequence[Row]) -> list[Row]:
    """The measured artifacts that are within their tolerance."""
    return [row for row in rows if row.ok and row.role == "artifact" and row.accepted is not False]


def recommend(rows: Sequence[Row], most_drop: float = 1.0, most_ms: float | None = None) -> tuple[Row | None, str]:
    """The fastest artifact within the budget, and why in words; the smallest one where no latency was measured.

    Args:
        most_drop: percentage points of top-1 that may be lost against the source model (of agreement, without labels).
        most_ms: limit of p50, or None.
    """
    good = [row for row in candidates(rows) if (lost := row.drop_points) is None or lost <= most_drop]
    within = f"within {most_drop:g} point{'' if most_drop == 1 else 's'} of the source model"
    if not good:
        return None, f"No artifact keeps {within}."
    timed = [row for row in good if row.p50_ms is not None]
    if most_ms is not None:
        timed = [row for row in timed if (row.p50_ms or 0.0) <= most_ms]
        if not timed:
            return None, f"No artifact that keeps {within} takes {most_ms:g} ms or less."
    if timed:
        pick = min(timed, key=lambda row: row.p50_ms or 0.0)
        limit = f"{most_ms:g} ms" if most_ms is not None else ""
        if pick.drop_points is None:
            return pick, f"The fastest{f' within {limit}' * bool(limit)}; its accuracy was not measured."
        return pick, f"The fastest {within}{f' and {limit}' * bool(limit)}."
    sized = [row for row in good if row.size_mib is not None]
    if not sized:
        return None, "Neither latency nor size is known."
    return min(sized, key=lambda row: row.size_mib or 0.0), f"The smallest {within}; no latency was measured."
