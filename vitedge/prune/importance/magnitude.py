"""The size of a group's weights (Li et al., arXiv 1608.08710); looks at no image."""

from __future__ import annotations

from torch import Tensor

from vitedge.prune.importance.layer import Layer


def magnitude(layer: Layer) -> Tensor:
    """Norm of what makes a group times the norm of what reads it, so that scaling one against the other is nothing."""
    into = layer.into.detach().double().pow(2).sum(1).unflatten(0, (-1, layer.size)).sum(1)
    out = layer.out.detach().double().pow(2).sum(0).unflatten(0, (-1, layer.size)).sum(1)
    return (into * out).sqrt()
