"""What the training of the model left, where `vitedge train` made it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, JsonValue

from vitedge import documents
from vitedge.bundle import Bundle
from vitedge.errors import VitedgeError
from vitedge.report.classes import MOST
from vitedge.tables import Table, is_number

# Where the import of a model puts the figures that its training left.
TRAINING = "source/training.json"


@dataclass(frozen=True)
class _Figures:
    """Of `training.json`, what is shown."""

    __pydantic_config__ = ConfigDict(extra="ignore", allow_inf_nan=False)

    images: Annotated[int, Field(ge=0)]
    part: str
    tables: list[JsonValue]
    steps: int = 0
    ended: str = ""
    top1: float | None = None
    f1: float | None = None
    confusion: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Training:
    """The figures in a sentence, tables of the classes (the worst first) and of the confused pairs, and the confusion
    matrix [true, said] with its names, where it is small enough to be seen."""

    line: str
    tables: tuple[Table, ...]
    names: tuple[str, ...] = ()
    matrix: tuple[tuple[int, ...], ...] = ()


def read_training(bundle: Bundle) -> Training | None:
    """What the run's model was trained to; None where `vitedge train` did not make it. Raises VitedgeError: damaged."""
    if not bundle.has(TRAINING):
        return None
    todo = "Train again, and compress what that makes."
    found = documents.validate(documents.parse_json(bundle.read(TRAINING), TRAINING), _Figures, TRAINING, todo=todo)
    try:
        tables = [Table.from_dict(value) for value in found.tables]
    except (ValueError, TypeError) as error:
        raise VitedgeError(f"{TRAINING} can't be read.", f"{error}.", todo) from error
    measure = "" if found.top1 is None else f"top-1 {100 * found.top1:.1f} %"
    measure = measure if found.f1 is None else f"F1 {100 * found.f1:.1f} %"
    line = f"{measure} on {found.images:,} {found.part} images, in float, after {found.steps:,} steps."
    matrix = np.array(found.confusion) if found.confusion else np.zeros((0, 0), int)
    names = tuple(str(row[0]) for row in tables[0].rows) if tables else ()
    square = matrix.ndim == 2 and matrix.shape == (len(names), len(names))
    shown = square and 0 < len(names) <= MOST
    rows = tuple(tuple(map(int, row)) for row in matrix) if shown else ()
    return Training(line, tuple(_shown(table) for table in tables), names if shown else (), rows)


def _shown(table: Table) -> Table:
    """Classes in the order of their figure, the worst first, of many the worst alone; shares in percent."""
    at = next((k for k, name in enumerate(table.columns) if name in ("accuracy", "F1")), None)
    if at is None:
        return replace(table, rows=table.rows[:MOST])

    def percent(row: Any) -> list[Any]:
        return [100 * cell if k == at and is_number(cell) else cell for k, cell in enumerate(row)]

    def key(row: Any) -> float:
        return float(row[at]) if is_number(row[at]) else float("inf")

    columns = [f"{name} (%)" if k == at else name for k, name in enumerate(table.columns)]
    ordered = sorted(table.rows, key=key)
    note = f"The {MOST} worst of {len(ordered)} classes." if len(ordered) > MOST else "The worst first."
    return replace(
        table, columns=columns, rows=[percent(row) for row in ordered[:MOST]], note=note, decimals={columns[at]: 1}
    )
