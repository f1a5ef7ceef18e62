"""What `vitedge search` can be told, and what a budget is. Imports no torch: the configuration holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator

from vitedge.errors import VitedgeError
from vitedge.options import EXPERT, SEED_MAX, Cli, Names, Options

Kind = Literal["p50-ms", "cycles", "size-mib"]
KINDS: tuple[Kind, ...] = ("p50-ms", "cycles", "size-mib")
WORDS = {"p50-ms": "ms p50", "cycles": "vendor cycles", "size-mib": "MiB"}


@dataclass(frozen=True)
class Budget:
    """The most that an artifact may cost."""

    kind: Kind
    most: float

    def __str__(self) -> str:
        return f"{self.kind}={self.most:g}"


def parse_budgets(texts: tuple[str, ...]) -> list[Budget]:
    """The budgets in ("p50-ms=20", "p50-ms=10"), the largest first. Raises VitedgeError."""
    found = []
    for text in texts:
        name, _, value = text.partition("=")
        kind = next((kind for kind in KINDS if kind == name), None)
        try:
            most = float(value)
        except ValueError:
            most = math.nan
        if kind is None or not (math.isfinite(most) and most > 0):
            raise VitedgeError(
                f"'{text[:60]}' is no budget.", "", f"Write such as p50-ms=20; known are {', '.join(KINDS)}."
            )
        found.append(Budget(kind, most))
    if len({budget.kind for budget in found}) > 1:
        raise VitedgeError(
            "The budgets are of different kinds.", "", "Give several of one kind, such as two of p50-ms."
        )
    return sorted(found, key=lambda budget: -budget.most)


class SearchOptions(Options):
    """What is searched, and for how long."""

    target: str = Field("onnxruntime", description="What runs the model: onnxruntime, openvino, tensorrt or rknn.")
    platform: str | None = Field(None, description="The target's platform, where it has some.")
    budget: Names = Field(
        (), description="The most it may cost: p50-ms=20, cycles=1.2e6 or size-mib=6; several make a family."
    )
    max_drop: float = Field(1.0, ge=0, le=100, description="Points of top-1 that may be lost, its error counted.")
    minutes: float = Field(30.0, gt=0, le=1e6, description="Time after which no further candidate is begun.")
    trials: int | None = Field(None, ge=1, le=10_000, description="Candidates measured at most.")
    points: int = Field(10, ge=2, le=200, description="Points of the front that are aimed at.")
    shares: str = Field("0.05:0.6", description="Least and largest share of the MACs to remove.")
    data: str | None = Field(None, description="Labelled images; the front is benched on them in the end.")
    limit: int | None = Field(None, ge=1, le=10**9, description="So many of them, each class its share.")
    held_out: int = Field(
        256, ge=8, le=1_000_000, description="Calibration images that candidates are judged on, and not fitted to."
    )
    recover: Literal["ridge", "block"] = Field("block", description="How pruned candidates are recovered.")
    storage: str | None = Field(
        None,
        description="Of the study: sqlite:///FILE, journal:FILE or postgresql://...; the same command on many machines "
        "shares it. (default: a file in the folder)",
    )
    study: str = Field("vitedge", description="Name of the study in its storage.")
    host: Names = Field((), description="user@board: candidates are measured there; several share the work.")
    ssh: Annotated[str, Cli(expert=True, local=True)] = Field("ssh", description="How ssh is called.")
    remote_python: Annotated[str, Cli(local=True)] = Field("python3", description="Python 3.10 or newer on the board.")
    threads: int | None = Field(None, ge=1, le=1024, description="Threads of a runner. (default: all)")
    seconds: Annotated[float, EXPERT] = Field(1.0, ge=0.05, le=3600, description="Shortest time for each latency.")
    search_seed: Annotated[int, EXPERT] = Field(0, ge=0, le=SEED_MAX, description="Seed of the candidates' order.")

    @field_validator("budget")
    @classmethod
    def _budgets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_budgets(value)
        return value

    @field_validator("shares")
    @classmethod
    def _shares(cls, value: str) -> str:
        parse_range(value)
        return value

    @property
    def budgets(self) -> list[Budget]:
        """The largest first."""
        return parse_budgets(self.budget)

    @property
    def cost_kind(self) -> Kind:
        """What candidates are compared by: the budget's kind, latency without one."""
        return self.budgets[0].kind if self.budget else "p50-ms"


def parse_range(text: str) -> tuple[float, float]:
    """(least, most) of such as "0.05:0.6". Raises VitedgeError."""
    low, _, high = text.partition(":")
    try:
        found = float(low), float(high or low)
    except ValueError:
        found = (math.nan, math.nan)
    if not 0 < found[0] <= found[1] <= 0.9:
        raise VitedgeError(f"'{text[:60]}' is no range of shares.", "", "Write such as --shares 0.05:0.6.")
    return found
