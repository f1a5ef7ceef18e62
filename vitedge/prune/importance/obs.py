"""Optimal Brain Surgeon with the covariance of the layer's inputs (Frantar and Alistarh, arXiv 2208.11580)."""

from __future__ import annotations

from vitedge.prune.importance.layer import Layer


def obs(layer: Layer) -> None:
    """No fixed score: at each step, what the others can best make up for goes."""
    return None
