"""Rewrites of the graph for ONNX Runtime's CPU kernels, one a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitedge.targets.onnxruntime.rewrites import integer_products

if TYPE_CHECKING:
    import onnx

REWRITES = {"integer_products": integer_products.rewrite}


def apply(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    """A rewritten copy, and how many times each rewrite found its pattern."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy, {name: rewrite(copy) for name, rewrite in REWRITES.items()}
