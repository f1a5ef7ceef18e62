"""The build options of TensorRT: flags of `vitedge build --target tensorrt`, keys of `[build.tensorrt]`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from vitedge.errors import VitedgeError
from vitedge.options import EXPERT, LOCAL
from vitedge.targets.base import TargetOptions


class TensorRTOptions(TargetOptions):
    """What the builder is told. Precision is not among it: it stands in the graph."""

    dynamic_batch: str | None = Field(
        None, description="MIN:OPT:MAX, or sizes such as 1,8 with a profile each; for graphs with a free batch."
    )
    workspace_mib: int | None = Field(
        None, ge=16, le=2**24, description="Scratch memory of a layer at most, in MiB. (default: all)"
    )
    opt_level: int | None = Field(None, ge=0, le=5, description="Effort of the builder. (default: TensorRT's 3)")
    timing_cache: Annotated[str | None, LOCAL] = Field(
        None, description="File of measured kernel times. (default: by GPU and version)"
    )
    version_compatible: Annotated[bool, EXPERT] = Field(
        False, description="An engine that later versions of TensorRT run too."
    )
    hardware_compatible: Annotated[bool, EXPERT] = Field(
        False, description="An engine for all GPUs since Ampere; not on Jetson, and slower."
    )
    dla: int | None = Field(None, ge=0, le=15, description="DLA core to run on, with the GPU for what it lacks.")
    cuda_graph: bool = Field(False, description="Run through a CUDA graph: less launch time for small batches.")
    int8_attention: bool = Field(False, description="With int8: quantise attention too, not only the Linears.")
    print_trtexec: bool = Field(False, description="Print the trtexec command of the same build, and stop.")


@dataclass(frozen=True)
class Profile:
    """Batch sizes of one optimisation profile: it runs lo..hi and is tuned for `best`."""

    lo: int
    best: int
    hi: int


def parse_profiles(text: str | None) -> list[Profile]:
    """ "1:8:16" -> one profile; "1,8" -> a profile for each size; None -> 1 to 8, tuned for 1."""
    if text is None:
        return [Profile(1, 1, 8)]
    if match := re.fullmatch(r"(\d+):(\d+):(\d+)", text.strip()):
        lo, best, hi = (int(n) for n in match.groups())
        if 1 <= lo <= best <= hi:
            return [Profile(lo, best, hi)]
    elif re.fullmatch(r"\d+(,\d+)*", text.strip()) and "0" not in text.split(","):
        return [Profile(n, n, n) for n in sorted({int(part) for part in text.split(",")})]
    raise VitedgeError(
        f"--dynamic-batch {text} is not understood.",
        "It takes MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, or batch sizes separated by commas.",
        "For instance: --dynamic-batch 1:4:8, or --dynamic-batch 1,8.",
    )
