"""What conditioning is asked to do, and what it says it did. Imports no torch: the configuration holds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vitedge.errors import VitedgeError

Rotation = Literal["auto", "learned", "hadamard", "random", "off"]


@dataclass(frozen=True)
class ConditionOptions:
    """Which float transforms are applied before anything is quantised.

    Attributes:
        fold: LayerNorm's gamma and beta into the next Linears, the attention scale into q.
        rotate: centre the residual stream and rotate it; "auto" measures the four ways and takes the best.
        smooth: SmoothQuant-like scales at each LayerNorm, where they lower the estimated error.
        balance: per head, q against k and v against the output projection; keys and values centred.
        groups: at most so many groups of MLP units with a scale each (1: never split).
        group_gain: split only where the rounding noise of GELU's output falls by at least this factor.
        group_size: units go into a group by multiples of this.
        massive: points of agreement (percent) that scaling massive activations down may cost; 0 leaves them.
            (default: 4 with the preset "full", else 0)
        images: calibration images that ranges and moments are taken from, at most.
        seed: of random rotations.
    """

    fold: bool = True
    rotate: Rotation = "auto"
    smooth: bool = True
    balance: bool = True
    groups: int = 3
    group_gain: float = 1.5
    group_size: int = 16
    massive: float | None = None
    images: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.groups, self.group_size, self.images) < 1:
            raise VitedgeError("condition.groups, group_size and images must be at least 1.")
        if self.massive is not None and not 0 <= self.massive <= 100:
            raise VitedgeError(f"condition.massive is in points of agreement, 0 to 100, not {self.massive}.")
        if self.rotate not in ("auto", "learned", "hadamard", "random", "off"):
            raise VitedgeError(
                f"There is no rotation '{self.rotate}'.", "", "Choose auto, learned, hadamard, random or off."
            )
        if not self.fold and (self.rotate != "off" or self.smooth):
            raise VitedgeError(
                "Rotating and smoothing need fold.",
                "A LayerNorm commutes with a rotation only without gamma and beta.",
                'Set fold = true, or rotate = "off" and smooth = false.',
            )


@dataclass(frozen=True)
class Step:
    """One transform as it was applied.

    Attributes:
        name: of the transform.
        exact: whether it leaves the function as it is, but for float rounding.
        chosen: what was chosen, in words or as a table (JSON-able).
        logit_difference: maximum over images and classes, as a share of the logits' range, against the model
            before conditioning.
        agreement: share of the images measured on that keep their top-1 class.
        crest: kind of activation -> (largest absmax over std before, after).
    """

    name: str
    exact: bool
    chosen: Any
    logit_difference: float
    agreement: float
    crest: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ConditionReport:
    """What conditioning did, in the order it was done."""

    steps: tuple[Step, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"steps": [asdict(step) for step in self.steps]}
