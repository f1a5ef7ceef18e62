"""Rounding of a Linear's weights against its calibration inputs, as pure functions.

GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded one after another, and what each rounding changed
of the output is made up for by the columns that are still to come. Before that, the float weights are fitted
to the float model's outputs on the inputs that the quantised layers before deliver (GPTAQ, arXiv 2504.02692,
has the same aim), so that errors do not add up from layer to layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitedge.quant.uniform import round_to


class Moments:
    """Sums over tokens of [x; 1] [x; 1]^T and y [x; 1]^T, weighted; float64."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.gram = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self.cross = torch.zeros(outputs, inputs + 1, dtype=torch.float64)
        self.tokens = 0

    def update(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> None:
        """x [n, in], y [n, out], weight [n] (1 by default)."""
        ones = torch.cat([x, x.new_ones(len(x), 1)], 1)
        weighted = ones if weight is None else ones * weight[:, None]
        self.gram += (ones.T @ weighted).double()
        self.cross += (y.T @ weighted).double()
        self.tokens += len(x)


def best_bias(values: Tensor, bias: Tensor, moments: Moments) -> Tensor:
    """The bias with which the mean output for weights `values` [out, in] is that of y."""
    if float(moments.gram[-1, -1]) <= 0:
        return bias.double()
    return (moments.cross[:, -1] - values.double() @ moments.gram[:-1, -1]) / moments.gram[-1, -1]


def centred_gram(moments: Moments) -> Tensor:
    """Covariance of x [in, in]: what is left to weights once the bias takes the mean."""
    total = moments.gram[-1, -1].clamp_min(1e-30)
    mean = moments.gram[:-1, -1] / total
    return moments.gram[:-1, :-1] / total - torch.outer(mean, mean)


def gptq(weight: Tensor, scale: Tensor, hessian: Tensor, bits: int = 8, damping: float = 0.01) -> Tensor:
    """Integers [out, in] for `weight` [out, in].

    Args:
        scale: of each weight, [out, in] (a row may have several, one a group of columns).
        hessian: covariance of the inputs [in, in].
        damping: added to the diagonal, as a share of its mean; more where there were few tokens.
    """
    w = weight.double().clone()
    n = w.shape[1]
    top = 2 ** (bits - 1) - 1
    h = hessian.double().clone()
    h.diagonal().add_(damping * h.diagonal().mean().clamp_min(1e-30))
    order = h.diagonal().argsort(descending=True, stable=True)
    inverse = torch.linalg.cholesky(torch.linalg.inv(h[order][:, order]), upper=True)
    w, s = w[:, order], scale.double()[:, order]
    q = torch.zeros_like(w)
    block = 64
    for start in range(0, n, block):
        end = min(start + block, n)
        errors = torch.zeros(len(w), end - start, dtype=torch.float64)
        for j in range(start, end):
            q[:, j] = (w[:, j] / s[:, j]).round().clamp(-top, top)
            errors[:, j - start] = (w[:, j] - q[:, j] * s[:, j]) / inverse[j, j]
            w[:, j + 1 : end] -= torch.outer(errors[:, j - start], inverse[j, j + 1 : end])
        w[:, end:] -= errors @ inverse[start:end, end:]
    out = torch.empty_like(q)
    out[:, order] = q
    return out


def nearest(weight: Tensor, scale: Tensor, bits: int = 8) -> Tensor:
    """Integers [out, in] for `weight` with scales [out, in], each to the nearest."""
    return round_to((weight.double() / scale), torch.ones(len(weight), dtype=torch.float64), bits)
