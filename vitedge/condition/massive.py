"""Massive activations: the few fc2 and output-projection columns that write norms far above the rest into a
few tokens (Sun et al., arXiv 2402.17762; Darcet et al., arXiv 2309.16588), scaled down. Not exact, so on a
budget.

The LayerNorm after it divides the size away again, so the float model hardly changes, but an INT8 residual
stream keeps its resolution. What does change is the part of those tokens that the massive direction drowned
before; it differs from image to image. Refitting every reader of the stream by least squares to its old
output was measured on images not fitted to (ViT-Ti/16, factors 0.25, 0.12, 0.06): logit SQNR fell from 23.0
to 22.5 and 16.9 to 16.5 dB in two cases and rose from 12.9 to 13.2 dB in the third, agreement fell in all. So
there is no such step here; rounding (vitedge.quant) fits each Linear to the float model's outputs anyway.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitedge.condition.ranges import Batches, ChannelStats, hooked
from vitedge.metrics import agreement
from vitedge.vit.architecture import Architecture
from vitedge.vit.names import block_index

FACTORS = (0.5, 0.35, 0.25, 0.18, 0.12, 0.09, 0.06)
# A column is massive where the largest norm that it writes is so many times the stream's typical norm.
OUTLIER = 5.0


@dataclass(frozen=True)
class Column:
    """One input of a Linear that writes to the residual stream: `unit` of `layer`; `ratio`: the largest norm
    it writes over the median norm of the stream's tokens there."""

    layer: str
    unit: int
    ratio: float


@torch.no_grad()
def find_massive(model: Architecture, batches: Batches) -> list[Column]:
    """The massive columns of all fc2 and output projections, the largest first."""
    linears = {n: m for n, m in model.linears().items() if block_index(n) is not None and n.endswith((".out", ".fc2"))}
    inputs: dict[str, ChannelStats] = {}
    streams: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor]) -> None:
            inputs.setdefault(name, ChannelStats.empty(args[0].shape[-1])).update(args[0])

        return hook

    def see(name: str, x: Tensor) -> None:
        streams.setdefault(name, []).append(x.norm(dim=-1).flatten().median())

    sites = {n: s for n, s in model.sites().items() if n.split(".")[-1] in ("residual1", "residual2")}
    handles = [linear.register_forward_pre_hook(watch(name)) for name, linear in linears.items()]
    with hooked(sites, see):
        for batch in batches():
            model(batch)
    for handle in handles:
        handle.remove()
    found = []
    for name, linear in linears.items():
        block = name.split(".")[0]
        site = f"{block}.residual1" if name.endswith("out") else f"{block}.residual2"
        typical = torch.stack(streams[site]).median()
        written = inputs[name].absmax * linear.weight.norm(dim=0)
        for unit in (written > OUTLIER * typical).nonzero().flatten().tolist():
            found.append(Column(name, unit, float(written[unit] / typical)))
    return sorted(found, key=lambda c: -c.ratio)


@torch.no_grad()
def scale_massive(model: Architecture, batches: Batches, budget: float) -> dict[str, object]:
    """Scales massive columns down as far as `budget` (share of agreement lost on `batches`) allows, in place.

    Returns what was found, the factor taken, and each factor tried with its agreement.
    """
    # Of streams that LayerNorms write to, no column of a Linear is massive.
    columns = find_massive(model, batches) if model.streams() else []
    if not columns:
        return {"columns": [], "factor": 1.0, "tried": {}}
    reference = torch.cat([model(batch) for batch in batches()])
    tried: dict[str, float] = {}
    factor, taken = 1.0, copy.deepcopy(model.state_dict())
    original = {column: model.linears()[column.layer].weight[:, column.unit].clone() for column in columns}
    for candidate in FACTORS:
        for column, weight in original.items():
            # A column that is not far out needs less: none goes far below the stream's typical norm.
            share = max(candidate, min(1.0, OUTLIER / 2 / column.ratio))
            model.linears()[column.layer].weight[:, column.unit] = weight * share
        now = torch.cat([model(batch) for batch in batches()])
        tried[str(candidate)] = same = agreement(reference, now, model.config.activation)
        if same < 1 - budget:
            break
        factor, taken = candidate, copy.deepcopy(model.state_dict())
    model.load_state_dict(taken)
    return {"columns": [asdict(c) for c in columns], "factor": factor, "tried": tried}
