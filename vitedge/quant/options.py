"""What quantisation is asked to do. Imports no torch: the configuration holds it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vitedge.options import EXPERT, Options, choice

Preset = Literal["linear", "full"]
# What `max_drop` is measured in, by the names that people read.
METRICS = {"top1": "top-1", "agreement": "agreement", "cosine": "cosine"}
ObserverName = Annotated[str, choice("observer", "auto", "minmax", "percentile", "mse", "entropy")]


class QuantOptions(Options):
    """How ranges are chosen and weights are rounded."""

    preset: Preset = Field(
        "linear",
        description="linear: inputs and weights of all Linears and the patch embedding; full: every activation, the "
        "residual stream, attention, LayerNorm's and GELU's inputs too, as integer NPUs compute.",
    )
    observer: ObserverName = Field(
        "auto",
        description="How an activation's range is chosen from its histogram: auto, minmax, percentile, mse or entropy; "
        "auto: with the preset linear, of mse and "
        "minmax the one that changes the logits less, for each activation; else mse.",
    )
    percentile: Annotated[float, EXPERT] = Field(
        99.99, gt=50, le=100, description="Percent of the values inside the range, for the observer percentile."
    )
    spare: float = Field(
        0.0,
        ge=0,
        le=1,
        description="With the preset linear and the observer auto, share of the MACs whose inputs may stay in float: "
        "those activations whose rounding changes the logits most.",
    )
    stem: Annotated[Literal["float", "int8"], EXPERT] = Field(
        "float",
        description="The convolutions that make the patches of a hybrid: float, or int8 in static quantisation, which "
        "wants --max-drop: GroupNorm enlarges their noise.",
    )
    symmetric: Annotated[bool, EXPERT] = Field(
        False, description="Zero points in the middle (TensorRT's rule): one bit less for GELU and softmax."
    )
    rounding: Literal["gptq", "nearest"] = Field(
        "gptq", description="gptq: weights rounded against calibration outputs, layer after layer; nearest: not."
    )
    correct: Annotated[bool, EXPERT] = Field(
        True, description="Each bias takes back what rounding moved its layer's mean output by."
    )
    weight_bits: int = Field(
        8, ge=7, le=8, description="8, or 7 for CPUs whose U8S8 products saturate (x86 before VNNI)."
    )
    max_drop: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Points of top-1 (percent) that mixed precision may lose on held-out images; of embeddings, "
        "percent of cosine to FP32. (default: no bound, all in INT8)",
    )
    metric: Annotated[Literal["top1", "agreement"], EXPERT] = Field(
        "top1",
        description="What --max-drop is measured in: top1, estimated from the float model's own probabilities and so "
        "without labels, or agreement.",
    )
    held_out: Annotated[float, EXPERT] = Field(
        0.25,
        gt=0,
        lt=1,
        description="Share of the calibration images that --max-drop is measured on, and nothing is fitted to.",
    )
