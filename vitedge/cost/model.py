"""A latency model: what a target on one machine takes for each kind of work. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, JsonValue

from vitedge import documents
from vitedge.cost.terms import KINDS, UNITS, Kind, Term, model_terms, totals
from vitedge.documents import Document
from vitedge.tables import Cell, Table
from vitedge.vit.config import ViTConfig

SCHEMA = 1


class LatencyModel(Document):
    """Nanoseconds of a unit of each kind of work, and where they come from.

    Attributes:
        target, precision, platform: what they hold for; an INT8 model of the preset full has the precision
            "int8-full".
        estimated: whether they are of a published profile and not of a measurement on the machine.
        coefficients: kind -> nanoseconds a unit (see `terms.UNITS`).
        source: how they were found, in words, with the paper, issue or command.
        error: median and largest relative error on plans that nothing was fitted to, or as the source allows to
            tell; None where that is not known.
        host: facts of the machine (`host.facts`), empty for a published profile.
    """

    version: int = Field(SCHEMA, alias="schema")
    target: str
    precision: str
    platform: str | None = None
    threads: int | None = None
    estimated: bool = False
    coefficients: dict[str, float]
    source: str
    plans: int = 0
    error_median: float | None = None
    error_most: float | None = None
    rank_correlation: float | None = None
    host: dict[str, JsonValue] = {}
    versions: dict[str, str] = {}

    def predict(self, config: ViTConfig) -> Prediction:
        """The latency of a plan."""
        return self.price(model_terms(config))

    def price(self, terms: list[Term]) -> Prediction:
        """The latency of this work."""
        work = totals(terms)
        return Prediction({k: 1e-6 * self.coefficients.get(k, 0.0) * amount for k, amount in work.items()})

    def nanoseconds(self, terms: list[Term]) -> int:
        """The same as a whole number, for an allocation that adds up parts."""
        return round(sum(self.coefficients.get(term.kind, 0.0) * term.amount for term in terms))

    @property
    def label(self) -> str:
        """What it is, in a few words."""
        kind = "estimate" if self.estimated else "fitted"
        return f"{self.target} {self.precision}, {kind}: {self.source}"

    def estimate(self, config: ViTConfig, name: str) -> Table:
        """What the model says of a plan, by kind of work; `name`: of the artifact."""
        found = self.predict(config)
        kinds = sorted((k for k, ms in found.by_kind.items() if ms), key=lambda kind: -found.by_kind[kind])
        rows: list[list[Cell]] = [[kind, found.by_kind[kind], found.by_kind[kind] / found.ms] for kind in kinds]
        title = f"{'Estimated' if self.estimated else 'Predicted'} latency of {name}"
        note = f"Not measured. From {self.source}"
        return Table(title, ["work", "ms", "share"], [*rows, ["all", found.ms, 1.0]], note, "build", bars=["share"])

    def to_json(self) -> dict[str, object]:
        """As a file holds it."""
        return self.model_dump(mode="json", by_alias=True)

    def table(self) -> Table:
        """The coefficients, for people."""
        rows: list[list[Cell]] = [
            [kind, UNITS[kind], self.coefficients[kind]] for kind in KINDS if self.coefficients.get(kind)
        ]
        note = self.source
        if self.error_median is not None:
            note += f" Relative error on other plans: median {self.error_median:.1%}, most {self.error_most:.1%}."
        return Table(f"Latency model of {self.target} {self.precision}", ["work", "unit", "ns a unit"], rows, note)


@dataclass(frozen=True)
class Prediction:
    """Milliseconds by kind of work, and their sum."""

    by_kind: Mapping[Kind, float]

    @property
    def ms(self) -> float:
        """Of one image."""
        return sum(self.by_kind.values())


def load(path: Path) -> LatencyModel:
    """The model in a JSON file. Raises VitedgeError."""
    values = documents.read_json(path)
    return documents.validate(values, LatencyModel, path, todo="Make it again with `vitedge profile`.")
