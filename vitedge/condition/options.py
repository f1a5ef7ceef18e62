"""What conditioning is asked to do, and what it says it did. Imports no torch: the configuration holds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vitedge.errors import VitedgeError
from vitedge.options import EXPERT, SEED_MAX, Cli, Options

Rotation = Literal["auto", "learned", "hadamard", "random", "off"]
# Points of agreement that massive activations may cost by default where everything is quantised: without scaling
# them down, the range of the residual stream leaves other tokens a few steps (measured on ViT-Ti/16).
MASSIVE_DROP_FULL = 4.0


class ConditionOptions(Options):
    """Which float transforms are applied before anything is quantised."""

    fold: Annotated[bool, EXPERT] = Field(
        True, description="LayerNorm's gamma and beta into the next Linears, the attention scale into q."
    )
    registers: bool | None = Field(
        None,
        description="Attention's sink tokens read as constants, and the massive activations that make them gone; near, "
        "not exact, and only where agreement on other calibration images stays. (default: on with the preset full)",
    )
    rotate: Rotation = Field(
        "auto",
        description="Centre the residual stream and rotate it; auto measures the four ways and takes the best.",
    )
    smooth: Annotated[bool, EXPERT] = Field(
        True, description="SmoothQuant-like scales at each LayerNorm, where they lower the estimated error."
    )
    balance: Annotated[bool, EXPERT] = Field(
        True, description="Per head, q against k and v against the output projection; keys and values centred."
    )
    groups: Annotated[int, EXPERT] = Field(
        3, ge=1, le=64, description="At most so many groups of MLP units with a scale each; 1: never split."
    )
    group_gain: Annotated[float, EXPERT] = Field(
        1.5, ge=0, description="Split only where the rounding noise of GELU's output falls by at least this factor."
    )
    group_size: Annotated[int, EXPERT] = Field(
        16, ge=1, le=4096, description="Units go into a group by multiples of this."
    )
    massive: Annotated[float | None, Cli("massive_drop")] = Field(
        None,
        ge=0,
        le=100,
        description="Points of agreement (percent) that scaling massive activations down may cost, where registers "
        "don't take them; 0 leaves them. (default: 4 with the preset full, else 0)",
    )
    images: Annotated[int, Cli("condition_images", expert=True)] = Field(
        64, ge=1, le=100_000, description="Calibration images that ranges and moments are taken from, at most."
    )
    seed: int = Field(0, ge=0, le=SEED_MAX, description="Seed of every random choice.")

    def settled(self, full: bool, max_drop: float | None) -> ConditionOptions:
        """With the defaults of what is not exact that a quantisation asks for: a model that is left in float, or whose
        residual stream is, keeps its function.

        Args:
            full: everything is quantised. max_drop: points of top-1 that the quantisation may cost, None for no bound.
        """
        drop = MASSIVE_DROP_FULL if full else 0.0
        if max_drop is not None:
            # What scaling loses counts against --max-drop. Not every image that changes its class was right before, so
            # it may cost more points of agreement than the bound has of top-1.
            drop = min(drop, 2 * max_drop)
        chosen: dict[str, object] = {"registers": full} if self.registers is None else {}
        return self.model_copy(update=chosen | ({"massive": drop} if self.massive is None else {}))

    @model_validator(mode="after")
    def _rotation_needs_fold(self) -> ConditionOptions:
        if not self.fold and (self.rotate != "off" or self.smooth):
            raise VitedgeError(
                "Rotating and smoothing need fold.",
                "A LayerNorm commutes with a rotation only without gamma and beta.",
                'Set fold = true, or rotate = "off" and smooth = false.',
            )
        return self


@dataclass(frozen=True)
class Step:
    """One transform as it was applied.

    Attributes:
        name: of the transform.
        exact: whether it leaves the function as it is, but for float rounding.
        chosen: what was chosen, in words or as a table (JSON-able).
        logit_difference: maximum over images and classes, as a share of the logits' range, against the model
            before this transform.
        agreement: share of the images measured on that keep the top-1 class that they had before conditioning.
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

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return {"steps": [asdict(step) for step in self.steps]}
