"""The bench JSON: `vitedge bench --json FILE`, and `bench/<host>.json` in the bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from vitedge import documents
from vitedge.bench.artifact import SOURCE, Artifact
from vitedge.bench.schema import SCHEMA, Measurement, Row, field_names
from vitedge.errors import VitedgeError
from vitedge.files import write_json

_TODO = "Pass a file that `vitedge bench --json FILE` wrote."


@dataclass(frozen=True)
class BenchResult(Measurement):
    """What a bench measured; a notebook shows it as tables."""

    @property
    def ok(self) -> tuple[Row, ...]:
        """The rows that were measured."""
        return tuple(row for row in self.rows if row.ok)

    def row(self, artifact: str) -> Row | None:
        """The row of that artifact, or None."""
        return next((row for row in self.rows if row.artifact == artifact), None)

    def to_dict(self) -> dict[str, object]:
        """The bench JSON, with its digest."""
        value: dict[str, object] = _ADAPTER.dump_python(self, mode="json")
        return value | {"digest": _digest(value)}

    def write(self, path: Path) -> None:
        """Writes the bench JSON atomically."""
        write_json(path, self.to_dict())

    def to_dataframe(self) -> Any:
        """A pandas DataFrame: one row an artifact, nested figures as columns such as latency_ms.p50."""
        try:
            import pandas
        except ImportError as error:
            raise VitedgeError(
                "A data frame needs pandas, which is not installed.", "", "Install it: pip install pandas."
            ) from error
        return pandas.json_normalize(self.to_dict()["rows"])

    def broken_gates(self, gate: str | None = None) -> list[str]:
        """A line for each broken limit, such as "top1-drop=1.0,p50-ms=20"; by default those that were asked for."""
        from vitedge.bench.gate import check_gates, parse_gates

        return check_gates(parse_gates(self.gate if gate is None else gate), self.rows)

    def __repr__(self) -> str:
        shown = []
        for row in self.rows:
            top1 = "" if row.top1 is None else f", top-1 {100 * row.top1:.1f} %"
            p50 = "" if row.p50_ms is None else f", p50 {row.p50_ms:.2f} ms"
            shown.append(f"{row.artifact}: {row.status}{top1}{p50}")
        return f"BenchResult({'; '.join(shown)})"

    def _repr_html_(self) -> str:
        from vitedge.bench import show
        from vitedge.report.html_table import table_html

        return "".join(map(table_html, show.tables(self)))


_ADAPTER = TypeAdapter(BenchResult)


def new_row(artifact: Artifact, **known: Any) -> Row:
    """A row without figures, for `artifact` with what is known of it beforehand (`size_mib`, ...)."""
    return Row(
        artifact=artifact.name,
        target=artifact.target,
        precision=artifact.precision,
        platform=artifact.platform,
        role="source" if artifact.name == SOURCE else "artifact",
        artifact_sha256=artifact.sha256,
        **known,
    )


def load(path: Path) -> BenchResult:
    """A bench JSON of this schema or an earlier one. Raises VitedgeError: missing, no result, or changed by hand."""
    return parse(documents.read_json(path, todo=_TODO), path)


def parse(value: Any, name: str | Path) -> BenchResult:
    """The result in plain values. Raises VitedgeError as `load` does."""
    if not isinstance(value, dict) or not isinstance(value.get("rows"), list):
        raise VitedgeError(f"'{documents.printable(name)}' is not a bench result.", "It has no rows.", _TODO)
    schema = value.get("schema")
    if schema not in (1, SCHEMA):
        why = f"Its schema is {schema}; this version of vitedge knows 1 to {SCHEMA}."
        raise VitedgeError(f"'{documents.printable(name)}' can't be read by this version of vitedge.", why, _TODO)
    if schema == 1:
        value = _from_1(value)
    elif value.get("digest") != _digest(value):
        raise VitedgeError(
            f"'{documents.printable(name)}' was changed after vitedge wrote it.",
            "Its digest is not that of its content, so its figures may not be what was measured.",
            "Measure again: vitedge bench.",
            exit_code=1,
        )
    return documents.validate(value, BenchResult, name, todo=_TODO)


def _digest(value: Mapping[str, object]) -> str:
    rest = {key: one for key, one in value.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _from_1(value: Mapping[str, object]) -> dict[str, object]:
    """Schema 1: `kl` had no unit, the reference was no row, and the settings held when it was measured."""
    known = set(field_names(Row))

    def row(old: Any) -> Any:
        if not isinstance(old, dict):
            return old
        new = {key: one for key, one in old.items() if key in known}
        return new | ({"kl_nats": old["kl"]} if "kl" in old else {})

    found, old_rows = value.get("settings"), value["rows"]
    settings = dict(found) if isinstance(found, dict) else {}
    rows = [row(one) for one in old_rows] if isinstance(old_rows, list) else []
    out = {key: value[key] for key in field_names(Measurement) if key in value and key != "settings"}
    out |= {"schema": SCHEMA, "reference": None, "rows": rows}
    out |= {key: settings.pop(key, None) for key in ("started", "seconds_taken")} if settings else {}
    out["settings"] = settings or None
    if isinstance(reference := value.get("reference"), dict):
        source = row(reference) | {"artifact": SOURCE, "role": "source", "status": "ok", "precision": "fp32"}
        out |= {"reference": SOURCE, "rows": [source, *rows]}
    return out
