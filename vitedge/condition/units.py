"""MLP units before a depthwise convolution, scaled to one range. Exact.

The convolution filters each unit by itself, and a ReLU before it scales with what it reads: what divides a unit's row
of fc1 multiplies its filter (cross-layer equalisation, arXiv 1906.04721). Filters have a scale each, so that nothing is
lost there.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vitedge.condition.ranges import measure
from vitedge.condition.surgery import assign
from vitedge.vit.architecture import Architecture


@torch.no_grad()
def scale_units(model: Architecture, batches: Iterable[Tensor]) -> dict[str, float]:
    """Gives the units of each MLP with a depthwise convolution the same absmax, in place; returns site -> largest over
    smallest scale."""
    blocks = {f"block{i}.mlp.fc1": b for i, b in enumerate(model.encoder()) if b.mlp is not None and b.mlp.depthwise}
    if not blocks:
        return {}
    stats, chosen = measure(model, batches, blocks), {}
    for name, block in blocks.items():
        mlp, stat = block.mlp, stats[name]
        assert mlp is not None and mlp.depthwise is not None
        reach = (stat.maximum if block.config.relu else stat.absmax).double()
        alive = reach > 1e-12
        # Units that never fire stay as they are; their mean range is that of all, so that nothing over- or underflows.
        scales = torch.where(alive, reach / reach[alive].log().mean().exp(), 1.0).clamp(1e-3, 1e3)
        assign(mlp.fc1.weight, mlp.fc1.weight.double() / scales[:, None])
        assign(mlp.fc1.bias, mlp.fc1.bias.double() / scales)
        assign(mlp.depthwise.weight, mlp.depthwise.weight.double() * scales[:, None, None, None])
        chosen[name] = float(scales.max() / scales.min())
    return chosen
