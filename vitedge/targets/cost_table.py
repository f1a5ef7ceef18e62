"""A vendor's cost estimate as a table for people: by operator, type and device."""

from __future__ import annotations

from vitedge.tables import Cell, Table
from vitedge.targets.base import CostTable


def summarize(cost: CostTable, name: str, before: int | None = None) -> Table:
    """The table of the layers of `name`, those of a kind together, the most expensive first.

    before: the total of the same model as it was exported, where that was compiled too.
    """
    kinds: dict[tuple[str, str, str], list[float | None]] = {}
    for row in cost.rows:
        sums = kinds.setdefault((row.op, row.dtype, row.device), [0, None, None])
        sums[0] = (sums[0] or 0) + 1
        for at, value in ((1, row.cycles), (2, row.kib)):
            if value is not None:
                sums[at] = (sums[at] or 0) + value
    ordered = sorted(kinds.items(), key=lambda item: -(item[1][1] or 0))
    rows: list[list[Cell]] = [[*kind, *sums] for kind, sums in ordered]
    moved = sum(row.kib or 0 for row in cost.rows)
    rows.append(["total", None, None, len(cost.rows), cost.total_cycles, moved])
    if before is not None:
        rows.append(["as exported, without the target's rewrites", None, None, None, before, None])
    return Table(
        f"The vendor's estimate for {name}",
        ["operator", "type", "on", "layers", "cycles", "moved (KiB)"],
        rows,
        f"Estimated by the vendor's compiler, not measured. {cost.not_modelled}".strip(),
        "build",
        decimals={"moved (KiB)": 0},
    )
