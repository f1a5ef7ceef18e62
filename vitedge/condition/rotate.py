"""Centring and rotating the residual stream: folded into all that write to it and all that read it. Exact.

Needs folded LayerNorms (gamma 1, beta 0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vitedge.condition.ranges import hooked
from vitedge.condition.surgery import assign, norms, writers
from vitedge.vit.model import VisionTransformer


@torch.no_grad()
def centre_stream(model: VisionTransformer) -> None:
    """Removes the mean over channels from everything that writes to the residual stream, in place.

    LayerNorm removes it anyway. It also goes from the readers' rows: a centred stream does not see it.
    """
    _write(model, lambda x: x - x.mean(0, keepdim=True))
    for _, _, readers in norms(model):
        for linear in readers:
            w = linear.weight.double()
            assign(linear.weight, w - w.mean(1, keepdim=True))


@torch.no_grad()
def rotate_stream(model: VisionTransformer, rotation: Tensor) -> None:
    """Writers w -> Q w, readers r -> r Q^T, in place. `rotation` Q [C, C], float64, orthogonal, Q 1 = 1."""
    _write(model, lambda x: rotation @ x)
    for _, _, readers in norms(model):
        for linear in readers:
            assign(linear.weight, linear.weight.double() @ rotation.T)


def _write(model: VisionTransformer, change: Callable[[Tensor], Tensor]) -> None:
    """Applies `change` [C, n] -> [C, n] to all that is added to the stream."""
    conv = model.patch_embed
    assign(conv.weight, change(conv.weight.double().flatten(1)))
    if conv.bias is not None:
        assign(conv.bias, change(conv.bias.double()[:, None]))
    for tokens in (model.class_token, model.pos_embedding):
        assign(tokens, change(tokens.double()[0].T).T)
    for linear in writers(model):
        assign(linear.weight, change(linear.weight.double()))
        assign(linear.bias, change(linear.bias.double()[:, None]))


@torch.no_grad()
def stream_moment(model: VisionTransformer, batches: Iterable[Tensor]) -> Tensor:
    """Second moment of the residual stream [C, C], float64, each site's scaled to a trace of 1, then summed.

    Scaled, because the stream grows from block to block and the early blocks count as much.
    """
    sites = {n: s for n, s in model.sites().items() if n == "embed" or "residual" in n}
    sums: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        flat = x.flatten(0, -2)
        gram = (flat.T @ flat).double()
        sums[name] = sums[name] + gram if name in sums else gram

    with hooked(sites, see):
        for batch in batches:
            model(batch)
    total = torch.zeros(model.config.width, model.config.width, dtype=torch.float64)
    for gram in sums.values():
        total += gram / gram.trace().clamp_min(1e-30)
    return total
