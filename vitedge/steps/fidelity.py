"""How near a graph's or an artifact's logits are to FP32's."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitedge.bench.accuracy import sqnr_db


def fidelity(logits: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Of float32 [n, classes] each: share of equal top-1 classes, and logit SQNR in dB (None where equal)."""
    noise = float(np.square(logits - reference).sum(dtype=np.float64))
    power = float(np.square(reference).sum(dtype=np.float64))
    agreement = float((logits.argmax(1) == reference.argmax(1)).mean())
    return {"agreement": agreement, "sqnr_db": sqnr_db(power, noise)}
