"""Which classes an artifact gets right, and what it takes the others for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitedge.bench.accuracy import confusion, per_class
from vitedge.tables import Cell, Table

# Classes up to which the whole matrix is shown; of more, the worst classes and what they are taken for.
MOST = 20


@dataclass(frozen=True)
class ByClass:
    """Of one artifact: a table of the classes, the worst first, and where it is small enough to be seen the confusion
    matrix [true, said] with its names."""

    artifact: str
    table: Table
    names: tuple[str, ...] = ()
    matrix: tuple[tuple[int, ...], ...] = ()


def by_class(artifact: str, records: np.ndarray, names: Sequence[str] | None) -> ByClass | None:
    """The classes in the records of an artifact; None without labels."""
    found = per_class(records)
    if not found:
        return None
    rows: list[list[Cell]] = []
    for one in found:
        low, high = one.top1_ci95
        taken = None if one.taken_for is None else class_name(names, one.taken_for)
        interval = f"{100 * low:.1f}..{100 * high:.1f}"
        rows.append([class_name(names, one.label), one.n, 100 * one.top1, interval, taken, one.times or None])
    columns = ["class", "images", "right (%)", "95 % interval", "most often taken for", "times"]
    shown = rows if len(rows) <= MOST else rows[:MOST]
    note = "" if len(rows) <= MOST else f"The {MOST} worst of {len(rows)} classes."
    table = Table(f"{artifact}: classes, the worst first", columns, shown, note, decimals={"right (%)": 1})
    matrix = confusion(records)
    if len(matrix) > MOST:
        return ByClass(artifact, table)
    labels = tuple(class_name(names, number) for number in range(len(matrix)))
    return ByClass(artifact, table, labels, tuple(tuple(map(int, row)) for row in matrix))


def class_name(names: Sequence[str] | None, number: int) -> str:
    """The class's name, or its number; of a single named class 1 is yes and 0 is no."""
    if names and len(names) == 1 and number in (0, 1):
        return names[0] if number else f"not {names[0]}"
    return names[number] if names and 0 <= number < len(names) else f"class {number}"
