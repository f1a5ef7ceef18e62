"""The facts that other rooms left in `analysis/`: read, checked, and ready to be rendered."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """One table of a room. Each row is as long as `columns`; None is a figure that was not measured."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    step: str = ""
    command: str = ""
    bars: tuple[str, ...] = field(default=())

    def column(self, name: str) -> list[Cell]:
        """The cells of that column. Raises ValueError where there is none."""
        at = self.columns.index(name)
        return [row[at] for row in self.rows]


def parse_table(value: Any) -> Table:
    """The table that a JSON object describes (see `vitedge.report`). Raises ValueError with what is wrong."""
    if not isinstance(value, dict):
        raise ValueError("a table is a JSON object with title, columns and rows")
    missing = [key for key in ("title", "columns", "rows") if key not in value]
    if missing:
        raise ValueError(f"the table has no {' and no '.join(missing)}")
    columns = tuple(str(name) for name in value["columns"])
    rows = tuple(tuple(_cell(cell) for cell in row) for row in value["rows"])
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(f"row {number} has {len(row)} cells for {len(columns)} columns")
    bars = tuple(str(name) for name in value.get("bars") or ())
    if unknown := [name for name in bars if name not in columns]:
        raise ValueError(f"bars names no column: {', '.join(unknown)}")
    texts = {key: str(value.get(key) or "") for key in ("title", "note", "step", "command")}
    return Table(columns=columns, rows=rows, bars=bars, **texts)


def load_tables(folder: str | Path) -> tuple[list[Table], list[str]]:
    """The tables of all `*.json` below `folder` by file name, and one line for each file that is none."""
    tables: list[Table] = []
    problems: list[str] = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            many = value["tables"] if isinstance(value, dict) and "tables" in value else [value]
            tables.extend([parse_table(one) for one in many])
        except (ValueError, TypeError, OSError) as error:
            problems.append(f"analysis/{path.name}: {error}")
    return tables, problems


def _cell(value: Any) -> Cell:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return json.dumps(value, ensure_ascii=False)
