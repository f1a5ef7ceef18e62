"""One pass over the calibration images that fills a histogram for each activation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vitedge.condition.ranges import hooked, non_finite
from vitedge.quant.fake import site_parts
from vitedge.quant.histogram import Histogram
from vitedge.vit.architecture import Architecture
from vitedge.vit.block import BlockConfig
from vitedge.vit.products import PIXELS

# Where an activation is within 0.001 of 0, and below it only gets nearer to 0: GELU(-3.5) = -0.0008.
FLOOR = {"gelu": -3.5, "gelu_tanh": -3.5, "quick_gelu": -5.5, "swiglu": -9.5}


@torch.no_grad()
def histograms(model: Architecture, batches: Iterable[Tensor], values: Iterable[str]) -> dict[str, Histogram]:
    """Value -> histogram of all that passed there. Raises VitedgeError on NaN or infinity (site and
    image)."""
    wanted = set(values) - {PIXELS}
    parts = {name: site_parts(model.config, name) for name in model.sites()}
    sites = {n: s for n, s in model.sites().items() if wanted & {value for value, _, _ in parts[n]}}
    found = {value: Histogram() for value in wanted}
    seen = 0

    def see(name: str, x: Tensor) -> None:
        if not torch.isfinite(x).all():
            raise non_finite(name, x, seen)
        for value, start, end in parts[name]:
            if value in wanted:
                found[value].update(x[..., start:end] if end else x)

    with hooked(sites, see):
        for batch in batches:
            model(batch)
            seen += len(batch)
    for value, histogram in found.items():
        block = model.config.block_of(value) if ".mlp." in value else None
        if block is not None and (floor := _floor(value, block)) is not None:
            histogram.minimum = max(histogram.minimum, floor)
    return found


def _floor(value: str, block: BlockConfig) -> float | None:
    """Below which what stands behind an activation's input `value` makes 0 of everything: the range need not reach
    there."""
    part = value.split(".mlp.")[1].split(".")[0]
    if block.relu and part == "fc1":
        return 0.0
    before = "gate" if block.gated else "depthwise" if block.depthwise else "fc1"
    return FLOOR[block.act] if part == before else None
