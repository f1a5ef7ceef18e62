"""Per-channel scales between an activation and the Linears that read it (SmoothQuant, arXiv 2211.10438;
RepQ-ViT, arXiv 2212.08254), with the strength chosen by an estimate of the rounding noise, "off" included.
Exact.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vitedge.condition.ranges import ChannelStats, measure
from vitedge.condition.surgery import assign
from vitedge.vit.architecture import Architecture

ALPHAS = (0.25, 0.4, 0.5, 0.6, 0.75, 1.0)


def product_noise(absmax: Tensor, energy: Tensor, weight: Tensor) -> float:
    """Mean square of the rounding noise of weight @ x, both in INT8, over the mean square of the product's
    terms.

    Args:
        absmax, energy: of x, per channel [in]; one scale for the tensor.
        weight: [out, in], one scale an output channel.

    Rounding noise is step^2 / 12, independent of everything (Widrow); the terms are taken as uncorrelated.
    """
    w = weight.double()
    step_x = absmax.double().max() / 127
    step_w = w.abs().amax(1) / 127
    from_x = step_x.square() / 12 * w.square().sum()
    from_w = step_w.square().sum() / 12 * energy.double().sum()
    signal = (w.square() * energy.double()).sum().clamp_min(1e-30)
    return float((from_x + from_w) / signal)


def smooth_scales(stat: ChannelStats, weight: Tensor) -> tuple[Tensor, float]:
    """(s [in] float64, alpha): dividing x by s and multiplying the weight's columns by it lowers the noise
    most.

    alpha 0 stands for "off" (s = 1). s = absmax^alpha / wmax^(1 - alpha), normalised to a geometric mean of
    1; dead channels get 1.
    """
    absmax = stat.absmax.double()
    columns = weight.double().abs().amax(0)
    alive = (absmax > 1e-12) & (columns > 1e-12)
    one = torch.ones_like(absmax)
    best, scales, strength = product_noise(absmax, stat.energy, weight), one, 0.0
    if not alive.any():
        return scales, strength
    for alpha in ALPHAS:
        s = torch.where(alive, absmax.clamp_min(1e-12) ** alpha / columns.clamp_min(1e-12) ** (1 - alpha), one)
        s = torch.where(alive, s / s[alive].log().mean().exp(), one).clamp(1e-2, 1e2)
        noise = product_noise(absmax / s, stat.energy / s.square(), weight.double() * s)
        # A few per cent are no gain: scales would only make the weights worse conditioned.
        if noise < 0.95 * best:
            best, scales, strength = noise, s, alpha
    return scales, strength


@torch.no_grad()
def smooth_norms(model: Architecture, batches: Iterable[Tensor]) -> dict[str, float]:
    """Centres every LayerNorm's output and scales it where that pays, in place; returns site -> alpha (0: off)."""
    stats = measure(model, batches, [reader.site for reader in model.readers()])
    chosen = {}
    for reader in model.readers():
        name = reader.site
        mean = stats[name].mean
        assign(reader.offset, reader.offset.double() - mean)
        for linear in reader.linears:
            assign(linear.bias, linear.bias.double() + linear.weight.double() @ reader.spread(mean, linear))
        scales, chosen[name] = smooth_scales(stats[name].shifted(mean), reader.rows())
        if chosen[name]:
            for parameter in {reader.norm.weight, reader.norm.bias, reader.offset}:
                assign(parameter, parameter.double() / scales)
            for linear in reader.gated_linears:
                assign(linear.weight, linear.weight.double() * reader.spread(scales, linear))
    return chosen
