"""One quantisation, written once: observers, the frozen scheme, rounding, Q/DQ insertion, dynamic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitedge.quant.dynamic import quantize_dynamic
from vitedge.quant.options import QuantOptions
from vitedge.quant.placement import FUSION_FRIENDLY, Placement
from vitedge.quant.qdq import insert_qdq
from vitedge.quant.scheme import Activation, Scheme, Weight

if TYPE_CHECKING:
    from vitedge.quant.fake import simulate
    from vitedge.quant.static import calibrate, round_weights

__all__ = [
    "FUSION_FRIENDLY",
    "Activation",
    "Placement",
    "QuantOptions",
    "Scheme",
    "Weight",
    "calibrate",
    "insert_qdq",
    "quantize_dynamic",
    "round_weights",
    "simulate",
]

# What works on the PyTorch model is loaded when it is asked for: a board reads schemes without torch.
_LAZY = {
    "calibrate": "vitedge.quant.static",
    "round_weights": "vitedge.quant.static",
    "simulate": "vitedge.quant.fake",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(name)
