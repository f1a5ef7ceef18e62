"""What pruning is asked to do. Imports no torch: the command line and the run's configuration read it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vitedge.errors import VitedgeError


class PruneOptions(BaseModel):
    """Structured pruning of a model, and its recovery from calibration images without labels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(0.3, description="Share of the dense model's MACs to remove, over 0 and up to 0.9.")
    unit: Literal["macs", "params"] = Field("macs", description="What the share is counted in.")
    importance: str = Field("obs", description="What ranks MLP units and heads: obs, hessian, taylor, magnitude.")
    align: int = Field(32, ge=1, description="MLP units are kept in multiples of this (NPU channels, tensor cores).")
    head_align: int = Field(
        8, ge=0, description="Head sizes are kept in multiples of this; 0 leaves head sizes alone."
    )
    min_heads: int = Field(1, ge=0, description="Fewest heads of a block; 0 lets a whole attention go.")
    min_hidden: int = Field(32, ge=0, description="Fewest MLP units of a block; 0 lets a whole MLP go.")
    recover: Literal["none", "ridge", "block"] = Field(
        "block", description="none: cut only; ridge: closed form; block: then fit each block by gradient steps."
    )
    sparsity: float | Literal["2:4"] | None = Field(
        None, description="Also zero this share of the remaining weights, or 2 of every 4 (SparseGPT)."
    )
    target: str | None = Field(None, description="Prefer cuts that this target's hardware rewards.")
    steps: int | None = Field(None, ge=0, description="Gradient steps a block; by the model's size by default.")
    batch: int = Field(16, ge=1, description="Images of one gradient step.")
    views: int | None = Field(None, ge=1, description="Augmented views of each calibration image.")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate of the gradient steps.")
    damping: float = Field(1e-4, ge=0, description="Ridge: share of the mean variance added to the diagonal.")
    seed: int = Field(0, description="Seed of the order of images and of the sampled outputs.")

    @field_validator("share")
    @classmethod
    def _share(cls, value: float) -> float:
        if not 0 < value <= 0.9:
            raise VitedgeError(
                f"Can't prune a share of {value}.",
                "A share is over 0 and at most 0.9.",
                "Give one such as --prune 0.3 (30 % of the MACs removed).",
            )
        return value
