"""Candidates: what can be chosen, as options of the steps that make it. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from vitedge import documents, targets
from vitedge.config import Layer, RunConfig, make_config
from vitedge.targets.base import Target

By = Literal["auto", "tokens", "widths"]
Stage = Literal["prune", "condition", "quantise"]


@dataclass(frozen=True)
class Candidate:
    """One way to compress and build a model.

    Attributes:
        share: of the model's cost that pruning removes, 0 for none; unit: "macs" or "time" (see `PruneOptions`).
        by: where pruning may cut. depth: whether whole attentions and MLPs may go.
        precision: of the target; preset: of INT8, "" for a float precision.
        spare: share of the MACs whose inputs stay in float, of INT8 with the preset linear.
    """

    share: float
    unit: Literal["macs", "time"]
    by: By
    depth: bool
    precision: str
    preset: str = ""
    spare: float = 0.0

    @property
    def key(self) -> str:
        """A digest of it: the same on every machine."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def variant(self) -> str:
        """The precision as latency models name it."""
        return f"{self.precision}-full" if self.preset == "full" else self.precision

    @property
    def pruning(self) -> str:
        """What candidates that prune alike have in common; empty for those that don't prune."""
        if not self.share:
            return ""
        return f"{self.share:g} {self.unit} {self.by}{' depth' if self.depth else ''}"

    def __str__(self) -> str:
        pruned = f"prune {self.pruning}" if self.share else "dense"
        spared = f", spare {self.spare:g}" if self.spare else ""
        return f"{pruned}; {self.variant}{spared}"

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: object) -> Candidate:
        """The inverse of `to_dict`. Raises VitedgeError where it is no candidate."""
        return documents.validate(value, cls, "a candidate")

    def to_config(self, base: RunConfig, target: str, until: Stage = "quantise") -> RunConfig:
        """The whole configuration that makes it, over the model and the images of `base`.

        A target whose compiler calibrates by itself gets its own preset, and a run that is only conditioned.

        until: "prune" for the float run that all precisions of a pruning share, "condition" for the one that those in
            INT8 with the same preset share. Conditioning is for what is quantised alone.
        """
        quantize, condition = until == "quantise", bool(self.preset) and until != "prune"
        own = targets.get(target).presets
        static = bool(self.preset) and quantize and not own
        layer: Layer = {"steps": {"quantize": "static" if static else "none", "condition": condition}}
        if condition and self.preset == "full":
            settled = base.condition.settled(True, base.quantize.max_drop)
            layer["condition"] = {"registers": settled.registers, "massive": settled.massive}
        if self.preset and quantize:
            layer["quantize"] = {"preset": self.preset, "spare": self.spare}
            if own:
                layer["build"] = {target: {"preset": own[self.preset]}}
        if self.share:
            layer["prune"] = {"prune": self.share, "prune_unit": self.unit, "prune_by": self.by}
            layer["prune"]["prune_target"] = target
            if self.depth:
                layer["prune"] |= {"min_heads": 0, "min_hidden": 0}
        return make_config(base.model_dump(exclude_none=True), layer, source="the candidate")


def variants(target: Target) -> list[tuple[str, str]]:
    """(precision, preset) of everything that the target can build: INT8 in both presets."""
    found = []
    for precision in target.precisions:
        presets = ("linear", "full") if precision == "int8" else ("",)
        found += [(precision, preset) for preset in presets]
    return found


# Share, unit, by, depth: what a candidate's pruning is (see `Candidate`).
Pruning = tuple[float, Literal["macs", "time"], By, bool]
DENSE: Pruning = (0.0, "macs", "auto", False)
# Shares of the MACs whose inputs stay in float that are tried in INT8 with the preset linear.
SPARES = (0.0, 0.02, 0.05)


def settings(*, timed: bool, mergeable: bool) -> list[tuple[Literal["macs", "time"], By, bool]]:
    """(unit, by, depth) of every way to prune. timed: whether shares of predicted time can be asked for."""
    units: tuple[Literal["macs", "time"], ...] = ("macs", "time") if timed else ("macs",)
    ways: tuple[By, ...] = ("auto", "tokens", "widths") if mergeable else ("widths",)
    return [(u, by, depth) for u in units for by in ways for depth in ((False, True) if by != "tokens" else (False,))]


def space(
    prunings: Sequence[Pruning], variants_tried: Sequence[tuple[str, str]], spares_tried: Sequence[float] = SPARES
) -> list[Candidate]:
    """Every pruning in every variant, the dense ones first; of INT8 also with some inputs left in float."""
    found = []
    for precision, preset in variants_tried:
        spares = spares_tried if preset == "linear" else (0.0,)
        found += [Candidate(*pruning, precision, preset, spare) for pruning in (DENSE, *prunings) for spare in spares]
    return sorted(found, key=lambda one: one.share)
