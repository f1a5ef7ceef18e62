"""Rounding of a Linear's weights against its calibration inputs, as pure functions.

GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded one after another, and what each rounding changed of the
output is made up for by the columns that are still to come.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitedge.moments import Moments
from vitedge.quant.uniform import round_to

# The most damping that rounding is tried with, as a share of the inputs' mean variance.
MOST_DAMPING = 10.0


def best_bias(values: Tensor, bias: Tensor, moments: Moments) -> Tensor:
    """The bias with which the mean output for weights `values` [out, in] is that of y."""
    if moments.weight <= 0:
        return bias.double()
    mean_x, mean_y = moments.mean()
    return mean_y - values.double() @ mean_x


def gptq(weight: Tensor, scale: Tensor, covariance: Tensor, bits: int = 8, damping: float = 0.01) -> Tensor:
    """Integers [out, in] for `weight` [out, in]. What is 0 stays 0: a pattern of zeros survives.

    Args:
        scale: of each weight, [out, in] (a row may have several, one a group of columns).
        covariance: of the inputs [in, in]; once the bias takes the mean, it is what is left to weights.
        damping: added to the diagonal, as a share of its mean; more where there were few tokens.

    Raises torch.linalg.LinAlgError where the damped covariance is singular all the same.
    """
    w = weight.double().clone()
    n = w.shape[1]
    top = 2 ** (bits - 1) - 1
    h = covariance.double().clone()
    h.diagonal().add_(damping * h.diagonal().mean().clamp_min(1e-30))
    order = h.diagonal().argsort(descending=True, stable=True)
    inverse = torch.linalg.cholesky(torch.linalg.inv(h[order][:, order]), upper=True)
    w, s, alive = w[:, order], scale.double()[:, order], weight[:, order] != 0
    q = torch.zeros_like(w)
    block = 64
    for start in range(0, n, block):
        end = min(start + block, n)
        errors = torch.zeros(len(w), end - start, dtype=torch.float64)
        for j in range(start, end):
            q[:, j] = (w[:, j] / s[:, j]).round().clamp(-top, top) * alive[:, j]
            errors[:, j - start] = (w[:, j] - q[:, j] * s[:, j]) / inverse[j, j]
            w[:, j + 1 : end] -= torch.outer(errors[:, j - start], inverse[j, j + 1 : end])
        w[:, end:] -= errors @ inverse[start:end, end:]
    out = torch.empty_like(q)
    out[:, order] = q
    return out


def gptq_or_nearest(
    weight: Tensor, scale: Tensor, covariance: Tensor, bits: int, damping: float
) -> tuple[Tensor, bool]:
    """(integers [out, in], whether by GPTQ). Inputs that (nearly) never vary have a singular covariance: it is damped
    ten times as much and again, and where even that does not help, there is nothing to round against."""
    while damping <= MOST_DAMPING:
        try:
            values = gptq(weight, scale, covariance, bits, damping)
        except torch.linalg.LinAlgError:
            damping *= 10
            continue
        if torch.isfinite(values).all():
            return values, True
        damping *= 10
    return nearest(weight, scale, bits), False


def nearest(weight: Tensor, scale: Tensor, bits: int = 8) -> Tensor:
    """Integers [out, in] for `weight` with scales [out, in], each to the nearest."""
    return round_to((weight.double() / scale), torch.ones(len(weight), dtype=torch.float64), bits)
