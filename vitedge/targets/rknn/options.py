"""What can be chosen for an RKNN build. Each field is a flag of `vitedge build` and a key of `[build.rknn]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vitedge.options import EXPERT, LOCAL
from vitedge.targets.base import TargetOptions

Cores = Literal["auto", "0", "1", "2", "0_1", "0_1_2", "all"]


class RknnOptions(TargetOptions):
    """Options of the RKNN target."""

    preset: Literal["balanced", "full"] = Field(
        "balanced",
        description="balanced: INT8 with float16 where --max-drop asks for it; full: no float16 in the blocks.",
    )
    max_drop: float = Field(
        1.0,
        ge=0,
        le=100,
        description="Points of top-1 that the noise in the simulator may be expected to cost, with its standard error; "
        "of embeddings, percent of cosine to FP32.",
    )
    algorithm: Literal["auto", "normal", "kl_divergence", "mmse"] = Field(
        "auto", description="How the compiler finds INT8 ranges; auto: measured (full) or normal (balanced)."
    )
    calib_images: Annotated[int, EXPERT] = Field(
        32, ge=1, le=1_000_000, description="Images that the compiler calibrates on."
    )
    check_images: Annotated[int, EXPERT] = Field(
        128, ge=1, le=1_000_000, description="Other calibration images that candidates are compared on, at most."
    )
    attention: Literal["fused", "parts"] = Field(
        "fused",
        description="fused: one operator for an attention where the compiler makes one; parts: its products and "
        "softmax by themselves, for chips whose fused one computes wrong (RK3576).",
    )
    optimization_level: Annotated[int | None, EXPERT] = Field(
        None,
        ge=0,
        le=3,
        description="How far the compiler optimises. (default: 3, or the highest at which float16 agrees with FP32)",
    )
    compare_export: bool = Field(
        False, description="Compile the graph as exported too, to show what the rewrites save (one more build)."
    )
    npu_cores: Cores = Field("auto", description="NPU cores that the runner uses on a board (RK3588, RK3576).")
    rknn_python: Annotated[str | None, LOCAL] = Field(
        None, description="Python of an environment that has rknn-toolkit2."
    )
    time_limit: Annotated[int, EXPERT] = Field(
        600, ge=1, le=604800, description="Seconds that one call of the compiler may take."
    )

    def names_compiler(self) -> bool:
        """True where --rknn-python names an environment."""
        return self.rknn_python is not None
