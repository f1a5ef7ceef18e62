"""First-order Taylor expansion (Molchanov et al., arXiv 1906.10771), with outputs drawn from the model as labels."""

from __future__ import annotations

from torch import Tensor

from vitedge.prune.importance.layer import Layer


def taylor(layer: Layer) -> Tensor:
    """Mean absolute first-order change of the log probability when a group is held at its mean."""
    assert layer.first is not None
    return layer.first
