"""Uniform quantisation as pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from vitedge.quant.scheme import Activation


def activation_for(low: float, high: float, symmetric: bool = False, bits: int = 8) -> Activation:
    """Scale and zero point for values in [low, high]; zero is always representable exactly.

    A constant or dead tensor (low = high = 0) gets scale 1.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    levels = 2**bits - 1
    if symmetric:
        reach = max(-low, high)
        return Activation(reach / (2 ** (bits - 1) - 1) if reach > 1e-30 else 1.0, 2 ** (bits - 1), bits)
    if high - low <= 1e-30:
        return Activation(1.0, 0, bits)
    # float32, as the graph holds it: the integers must be the same everywhere.
    scale = float(torch.tensor((high - low) / levels, dtype=torch.float32))
    return Activation(scale, min(levels, max(0, round(-low / scale))), bits)


def fake_quantize(x: Tensor, to: Activation) -> Tensor:
    """`x` rounded to what `to` can hold (round half to even, as ONNX's QuantizeLinear)."""
    # Divided as ONNX divides: times the inverse, as torch's own operator does it, some ties fall the other way.
    return (x / to.scale).round_().clamp_(-to.zero_point, 2**to.bits - 1 - to.zero_point).mul_(to.scale)


def weight_scales(weight: Tensor, bits: int = 8, importance: Tensor | None = None) -> Tensor:
    """Symmetric scale of each row of `weight` [out, in] with the least squared rounding error -> [out],
    float64.

    importance [in]: what a squared error in that column costs (an activation's mean square). Dead rows get 1.
    """
    w = weight.double()
    top = 2 ** (bits - 1) - 1
    absmax = w.abs().amax(1)
    alive = absmax > 1e-30
    cost = torch.ones(w.shape[1], dtype=torch.float64) if importance is None else importance.double()
    best = torch.full_like(absmax, float("inf"))
    scale = torch.where(alive, absmax / top, torch.ones_like(absmax))
    for shrink in torch.linspace(1.0, 0.7, 16, dtype=torch.float64):
        candidate = torch.where(alive, absmax * shrink / top, torch.ones_like(absmax))
        error = ((w - round_to(w, candidate, bits) * candidate[:, None]).square() * cost).sum(1)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, candidate, scale)
    return scale.float().double()


def round_to(weight: Tensor, scale: Tensor, bits: int = 8) -> Tensor:
    """Integers of `weight` [out, in] with a scale a row [out], to nearest, in -(2^(bits-1) - 1)..2^(bits-1) -
    1."""
    top = 2 ** (bits - 1) - 1
    return (weight / scale[:, None]).round().clamp(-top, top)
