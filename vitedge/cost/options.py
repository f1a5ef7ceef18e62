"""What `vitedge profile` can be told. Imports no torch: the configuration holds it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vitedge.options import EXPERT, SEED_MAX, Names, Options


class ProfileOptions(Options):
    """How a latency model is found."""

    target: str = Field("onnxruntime", description="Whose latency: onnxruntime, openvino or rknn.")
    precision: Names = Field(
        (), description="With commas; int8-full: INT8 with the preset full. (default: the target's first)"
    )
    platform: str | None = Field(None, description="The target's platform, where it has some.")
    plans: int = Field(24, ge=8, le=1000, description="Plans of other widths and tokens that are built and timed.")
    checks: Annotated[int, EXPERT] = Field(
        8, ge=4, le=1000, description="Further plans that the model is checked on, and not fitted to."
    )
    threads: int | None = Field(None, ge=1, le=1024, description="Threads of a runner. (default: all)")
    perf: str | None = Field(
        None, description="File with what the vendor's profiler printed on a board (rknn: eval_perf with perf_debug)."
    )
    seed: Annotated[int, EXPERT] = Field(0, ge=0, le=SEED_MAX, description="Seed of the plans.")
