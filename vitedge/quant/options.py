"""What quantisation is asked to do. Imports no torch: the configuration holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitedge.errors import VitedgeError

Preset = Literal["linear", "full"]
# What `max_drop` is measured in, by the names that people read.
METRICS = {"top1": "top-1", "agreement": "agreement"}
ObserverName = Literal["auto", "minmax", "percentile", "mse", "entropy"]


@dataclass(frozen=True)
class QuantOptions:
    """How ranges are chosen and weights are rounded.

    Attributes:
        preset: "linear": inputs and weights of all Linears and the patch embedding; "full": every activation,
            the residual stream, attention, LayerNorm's and GELU's inputs too, as integer NPUs compute.
        observer: how an activation's range is chosen from its histogram; "auto": with the preset "linear", of
            "mse" and "minmax" the one that changes the logits less, for each activation; else "mse".
        spare: with the preset "linear" and the observer "auto", share of the MACs whose inputs may stay in
            float: those activations whose rounding changes the logits most.
        percentile: share of values (percent) inside the range, for the observer "percentile".
        symmetric: zero points in the middle (TensorRT's rule): one bit less for GELU and softmax.
        rounding: "gptq": weights rounded against calibration outputs, layer after layer; "nearest": not.
        correct: each bias takes back what rounding moved its layer's mean output by.
        weight_bits: 8, or 7 for CPUs whose U8S8 products saturate (x86 before VNNI).
        max_drop: points (percent) of top-1 that mixed precision may lose on held-out images; None keeps all
            in INT8.
        metric: what `max_drop` is measured in: "top1", estimated from the float model's own probabilities
            and so without labels, or "agreement".
        held_out: share of the calibration images that `max_drop` is measured on, and nothing is fitted to.
    """

    preset: Preset = "linear"
    observer: ObserverName = "auto"
    percentile: float = 99.99
    spare: float = 0.0
    symmetric: bool = False
    rounding: Literal["gptq", "nearest"] = "gptq"
    correct: bool = True
    weight_bits: int = 8
    max_drop: float | None = None
    metric: Literal["top1", "agreement"] = "top1"
    held_out: float = 0.25

    def __post_init__(self) -> None:
        allowed = {
            "preset": ("linear", "full"),
            "observer": ("auto", "minmax", "percentile", "mse", "entropy"),
            "rounding": ("gptq", "nearest"),
            "metric": tuple(METRICS),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise VitedgeError(
                    f"There is no {name} '{getattr(self, name)}'.", "", f"Choose one of {', '.join(values)}."
                )
        if not 50 < self.percentile <= 100:
            raise VitedgeError(f"The percentile must be above 50 and at most 100, not {self.percentile}.")
        if self.weight_bits not in (7, 8):
            raise VitedgeError(f"Weights have 7 or 8 bits, not {self.weight_bits}.")
        if self.max_drop is not None and self.max_drop < 0:
            raise VitedgeError(f"--max-drop is in points lost, 0 or more, not {self.max_drop}.")
        if not 0 <= self.spare <= 1:
            raise VitedgeError(f"quant.spare is a share, 0 to 1, not {self.spare}.")
        if not 0 < self.held_out < 1:
            raise VitedgeError(f"The held-out share must lie between 0 and 1, not {self.held_out}.")
