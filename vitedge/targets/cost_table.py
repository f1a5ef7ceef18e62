"""A vendor's cost estimate as a table for people: by operator, type and device."""

from __future__ import annotations

from typing import Any

from vitedge.targets.base import CostTable


def summarize(cost: CostTable, name: str, before: int | None = None) -> dict[str, Any]:
    """The table (`vitedge.report`'s form) of the layers of `name`, those of a kind together, the most expensive first.

    before: the total of the same model as it was exported, where that was compiled too.
    """
    kinds: dict[tuple[str, str, str], list[float | None]] = {}
    for row in cost.rows:
        sums = kinds.setdefault((row.op, row.dtype, row.device), [0, None, None])
        sums[0] = (sums[0] or 0) + 1
        for at, value in ((1, row.cycles), (2, row.kib)):
            if value is not None:
                sums[at] = (sums[at] or 0) + value
    rows = [[*kind, *sums] for kind, sums in sorted(kinds.items(), key=lambda item: -(item[1][1] or 0))]
    moved = sum(row.kib or 0 for row in cost.rows)
    rows.append(["total", None, None, len(cost.rows), cost.total_cycles, moved])
    if before is not None:
        rows.append(["as exported, without the target's rewrites", None, None, None, before, None])
    return {
        "title": f"The vendor's estimate for {name}",
        "columns": ["operator", "type", "on", "layers", "cycles", "KiB moved"],
        "rows": rows,
        "note": f"Estimated by the vendor's compiler, not measured. {cost.not_modelled}".strip(),
        "step": "build",
    }
