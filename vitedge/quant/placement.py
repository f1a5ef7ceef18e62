"""Where a target wants its Q/DQ pairs: small data, owned by the targets. Imports no torch and no onnx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Placement:
    """How the scheme is written into the graph.

    Attributes:
        signed: activations as int8 instead of uint8: the same integers, shifted by 128.
        symmetric: the target takes no zero points but 0 (TensorRT); the scheme must have been calibrated so.
        patch: the patch embedding as "matmul" (uint8 patches times int8 weights: integers from the first
            byte), as "conv" (Q/DQ around the convolution) or "float" (a target that quantises it by itself or
            not at all).
    """

    signed: bool = False
    symmetric: bool = False
    patch: Literal["matmul", "conv", "float"] = "matmul"


# uint8 times int8 is what x86's VNNI and ONNX Runtime's kernels multiply fastest.
FUSION_FRIENDLY = Placement()
