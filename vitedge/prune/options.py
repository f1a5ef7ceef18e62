"""What pruning is asked to do. Imports no torch: the command line and the run's configuration read it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from vitedge.errors import VitedgeError, printable
from vitedge.options import EXPERT, SEED_MAX, Options, choice

Importance = Annotated[str, choice("importance", "obs", "hessian", "taylor", "magnitude")]


class PruneOptions(Options):
    """Structured pruning, and its recovery from calibration images without labels."""

    prune: float | None = Field(
        None, allow_inf_nan=True, description="Share of the model's MACs to remove, over 0 and up to 0.9."
    )
    prune_unit: Literal["macs", "params", "time"] = Field(
        "macs", description="What that share is counted in; time: as `vitedge profile` knows --prune-target."
    )
    prune_by: Literal["auto", "tokens", "widths"] = Field(
        "auto", description="Where: auto: tokens are merged and widths cut, wherever it does least harm; or one alone."
    )
    merge: Literal["auto", "matched", "constant"] = Field(
        "auto",
        description="Merge each image's own most similar tokens (matched), or the same for all images (constant); "
        "auto: as --prune-target can. With matched, constant groups are chosen too, for builds that need them.",
    )
    importance: Importance = Field(
        "obs", description="What ranks MLP units and heads: obs, hessian, taylor or magnitude."
    )
    align: int = Field(
        32, ge=1, le=4096, description="MLP units stay in multiples of this (NPU channels, tensor cores)."
    )
    head_align: Annotated[int, EXPERT] = Field(
        8, ge=0, le=4096, description="Head sizes stay in multiples of this; 0 leaves them as they are."
    )
    min_heads: Annotated[int, EXPERT] = Field(
        1, ge=0, le=4096, description="Fewest heads of a block; 0 lets a whole attention go."
    )
    min_hidden: Annotated[int, EXPERT] = Field(
        32, ge=0, le=1_000_000, description="Fewest MLP units of a block; 0 lets a whole MLP go."
    )
    recover: Literal["none", "ridge", "block", "distill"] = Field(
        "block",
        description="none: only cut; ridge: closed form; block: then each block by gradient steps; "
        "distill: then the whole by distillation.",
    )
    sparsity: str | None = Field(
        None, description="Also zero this share of the weights left, such as 0.5, or 2:4 (no faster on most targets)."
    )
    prune_target: str | None = Field(
        None,
        description="Only widths, and a way to merge tokens, that the hardware of rknn, tensorrt, onnxruntime or "
        "openvino turns into speed; openvino:int8 names the precision whose time counts.",
    )
    fit_steps: int | None = Field(
        None, ge=0, le=1_000_000, description="Gradient steps a block. (default: by the model's size)"
    )
    fit_batch: Annotated[int, EXPERT] = Field(16, ge=1, le=65536, description="Images of one gradient step.")
    fit_views: Annotated[int | None, EXPERT] = Field(
        None, ge=1, le=10_000, description="Crops of each image that are fitted to. (default: as the steps need)"
    )
    fit_lr: Annotated[float, EXPERT] = Field(1e-3, gt=0, description="Peak learning rate of the gradient steps.")
    damping: Annotated[float, EXPERT] = Field(
        1e-4, gt=0, le=1, description="Ridge: share of the mean variance added to the diagonal."
    )
    seed: int = Field(0, ge=0, le=SEED_MAX, description="Seed of every random choice.")

    @field_validator("prune")
    @classmethod
    def _share(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value <= 0.9:
            raise VitedgeError(
                f"Can't prune a share of {value}.",
                "A share is over 0 and at most 0.9.",
                "Give one such as --prune 0.3: 30 % of the MACs are removed.",
            )
        return value

    @field_validator("sparsity")
    @classmethod
    def _sparsity(cls, value: str | None) -> str | None:
        if value not in (None, "2:4"):
            try:
                valid = 0 < float(value) < 1
            except ValueError:
                valid = False
            if not valid:
                raise VitedgeError(f"There is no sparsity '{value}'.", "", "Give a share such as 0.5, or 2:4.")
        return value


def parse_shares(text: str) -> list[float]:
    """The numbers of a list such as "0.1,0.3"; each is checked as --prune is. Raises VitedgeError."""
    parts = text.split(",")
    try:
        shares = [float(part) for part in parts]
    except ValueError as error:
        raise VitedgeError(
            f"'{printable(text, 60)}' is no list of shares.", "", "Give such as --shares 0.1,0.2,0.3."
        ) from error
    if len(shares) > 32:
        raise VitedgeError(f"--shares has {len(shares)} shares.", "Each takes its time.", "Give 32 at most.")
    for share in shares:
        PruneOptions(prune=share)
    return shares
