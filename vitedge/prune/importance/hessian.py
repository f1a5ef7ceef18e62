"""The diagonal of the Hessian of the KL divergence: the Fisher information (Theis et al., arXiv 1801.05787)."""

from __future__ import annotations

from torch import Tensor

from vitedge.prune.importance.layer import Layer


def hessian(layer: Layer) -> Tensor:
    """Second-order increase of the KL divergence of the logits when a group is held at its mean."""
    assert layer.second is not None
    return layer.second / 2
