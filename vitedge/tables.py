"""The one table: steps write it to `analysis/`, and the console, Markdown and the report page show it.

A cell is a number wherever it is one; how many digits are shown is the column's affair, not the cell's. A column has
one unit, which stands in its name: "SQNR (dB)", "p50 (ms)".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from vitedge import documents
from vitedge.documents import printable
from vitedge.errors import VitedgeError

Cell = str | int | float | bool | None
MISSING = "–"
# Characters between two columns on a terminal.
GAP = 2

# Endings of keys -> unit: tables of earlier versions have keys for columns.
_UNITS = {"db": "dB", "ms": "ms", "mib": "MiB", "kib": "KiB", "mj": "mJ", "s": "s"}
_WORDS = {"sqnr": "SQNR", "kl": "KL", "top1": "top-1", "macs": "MACs", "lr": "learning rate"}


@dataclass(frozen=True)
class Table:
    """Rows under named columns; None is a figure that was not measured.

    Attributes:
        title: heading of the table.
        columns: names with their units; no two alike.
        rows: as many cells each as there are columns.
        note: how it was measured.
        step: the step that wrote it.
        bars: columns that are drawn as bars beside their figures.
        command: what makes it again.
        decimals: column -> digits after the point; columns not named choose by their values.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    step: str = ""
    bars: Sequence[str] = ()
    command: str = ""
    decimals: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "rows", tuple(tuple(_plain(cell) for cell in row) for row in self.rows))
        object.__setattr__(self, "bars", tuple(self.bars))
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} has {len(row)} cells for {len(self.columns)} columns")
        if unknown := [name for name in self.bars if name not in self.columns]:
            raise ValueError(f"bars names no column: {', '.join(unknown)}")

    def column(self, name: str) -> list[Cell]:
        """The cells of that column. Raises ValueError where there is none."""
        at = tuple(self.columns).index(name)
        return [row[at] for row in self.rows]

    def texts(self) -> list[list[str]]:
        """The cells as they are read, all of a column with the same number of digits."""
        digits = [self.decimals.get(name) for name in self.columns]
        shown = [_column_texts([row[at] for row in self.rows], wanted) for at, wanted in enumerate(digits)]
        return [list(row) for row in zip(*shown, strict=True)] if self.rows else []

    def headings(self) -> list[str]:
        """The columns' names in words."""
        return [heading(name) for name in self.columns]

    def numeric(self) -> list[bool]:
        """Which columns hold numbers, and so stand right."""
        return [
            any(is_number(row[at]) for row in self.rows)
            and all(is_number(row[at]) or row[at] is None for row in self.rows)
            for at in range(len(self.columns))
        ]

    def without_empty(self) -> Table:
        """Without the columns in which no row has a value; the first stays."""
        stay = [at for at in range(len(self.columns)) if at == 0 or any(row[at] is not None for row in self.rows)]
        return self._choose(stay)

    def widths(self) -> list[int]:
        """Characters that each column takes with the gap behind it; text of more than 40 is folded."""
        texts = [self.headings(), *self.texts()]
        return [min(40, max(len(row[at]) for row in texts)) + GAP for at in range(len(self.columns))]

    def fitted(self, width: int) -> list[Table]:
        """Tables of at most `width` characters a line: columns that do not fit any more go on in a further table, which
        begins with the first column again."""
        wide = self.widths()
        width += GAP  # behind the last column stands none
        parts: list[list[int]] = [[0]]
        for at in range(1, len(self.columns)):
            if sum(wide[one] for one in parts[-1]) + wide[at] > width and len(parts[-1]) > 1:
                parts.append([0])
            parts[-1].append(at)
        return [self] if len(parts) == 1 else [self._choose(part) for part in parts]

    def _choose(self, stay: Sequence[int]) -> Table:
        columns = [self.columns[at] for at in stay]
        rows = [[row[at] for at in stay] for row in self.rows]
        return replace(self, columns=columns, rows=rows, bars=[name for name in self.bars if name in columns])

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it: what is empty is left out."""
        known = {"title": self.title, "columns": list(self.columns), "rows": [list(row) for row in self.rows]}
        rest = {"note": self.note, "step": self.step, "bars": list(self.bars), "command": self.command}
        return known | {key: value for key, value in (rest | {"decimals": dict(self.decimals)}).items() if value}

    @classmethod
    def from_dict(cls, value: Any) -> Table:
        """The table that a JSON object describes. Raises ValueError with what is wrong."""
        if not isinstance(value, dict):
            raise ValueError("a table is a JSON object with title, columns and rows")
        if missing := [key for key in ("title", "columns", "rows") if key not in value]:
            raise ValueError(f"the table has no {' and no '.join(missing)}")
        if not isinstance(value["columns"], list) or not all(isinstance(row, list) for row in _rows(value["rows"])):
            raise ValueError("columns and rows are lists")
        decimals = value.get("decimals")
        return cls(
            title=str(value["title"] or ""),
            columns=[str(name) for name in value["columns"]],
            rows=value["rows"],
            bars=[str(name) for name in value.get("bars") or ()],
            decimals={str(k): int(v) for k, v in decimals.items()} if isinstance(decimals, dict) else {},
            **{key: str(value.get(key) or "") for key in ("note", "step", "command")},
        )


def to_json(*tables: Table, step: str = "") -> dict[str, object]:
    """What a file of `analysis/` holds; `step` names who wrote the tables that don't say."""
    return {"tables": [(replace(one, step=one.step or step)).to_dict() for one in tables]}


def load_tables(folder: str | Path) -> tuple[list[Table], list[str]]:
    """The tables of all `*.json` below `folder` by file name, and one line for each file that is none."""
    tables: list[Table] = []
    problems: list[str] = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            tables.extend(read_tables(documents.read_bytes(path)))
        except (ValueError, TypeError) as error:
            problems.append(f"analysis/{printable(path.name)}: {error}")
        except VitedgeError as error:
            problems.append(f"analysis/{printable(path.name)}: {error.why or error.what}")
    return tables, problems


def read_tables(text: bytes | str) -> list[Table]:
    """The tables in the JSON of a file of `analysis/`: one, or several under "tables".

    Raises ValueError, VitedgeError.
    """
    value = documents.parse_json(text, "the table")
    many = value["tables"] if isinstance(value, dict) and "tables" in value else [value]
    return [Table.from_dict(one) for one in _rows(many)]


def markdown(table: Table) -> str:
    """GitHub's Markdown, without the title; nothing in a cell is taken for markup."""
    lines = [table.headings(), ["---:" if right else "---" for right in table.numeric()], *table.texts()]
    return "\n".join("| " + " | ".join(escape_markdown(cell) for cell in line) + " |" for line in lines)


def escape_markdown(text: str) -> str:
    """Text that GitHub's Markdown shows as it is: no HTML, no links, no control characters, no end of a cell."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)


def heading(name: str) -> str:
    """A column's name in words: "removed_share" is "removed share", "sqnr_db" is "SQNR (dB)"."""
    if "_" not in name or " " in name:
        return name
    *words, last = name.split("_")
    unit = f" ({_UNITS[last]})" if last in _UNITS and words else ""
    return " ".join(_WORDS.get(word, word) for word in (words if unit else [*words, last])) + unit


def cell_text(value: Cell) -> str:
    """A cell by itself: a dash for what was not measured, four digits of a number."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else printable(value)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _column_texts(cells: Sequence[Cell], decimals: int | None) -> list[str]:
    floats = [abs(c) for c in cells if isinstance(c, float)]
    if decimals is None and floats and not any(isinstance(c, int) and not isinstance(c, bool) for c in cells):
        decimals = _digits(floats)
    if decimals is None:
        return [cell_text(cell) for cell in cells]
    return [f"{cell:,.{decimals}f}" if is_number(cell) else cell_text(cell) for cell in cells]


def _digits(values: Iterable[float]) -> int | None:
    """Digits after the point that show the largest value with four digits and the smallest with two; None where six do
    not do for that."""
    sizes = [value for value in values if value > 0]
    if not sizes:
        return 0
    wanted = max(3 - math.floor(math.log10(max(sizes))), 1 - math.floor(math.log10(min(sizes))), 0)
    return wanted if wanted <= 6 else None


def _plain(value: Any) -> Cell:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return json.dumps(value, ensure_ascii=False)


def _rows(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("rows and tables are lists")
    return value
