"""LayerNorm's gamma and beta folded into the Linears that read it, the attention scale into q. Exact."""

from __future__ import annotations

import torch
from torch import Tensor

from vitedge.condition.surgery import assign
from vitedge.vit.architecture import Architecture


def folded(weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """(weight', bias') with weight' n + bias' = weight (gamma n + beta) + bias, in float64.

    Shapes: weight [out, in], bias [out], gamma and beta [in].
    """
    w = weight.double()
    return w * gamma.double(), bias.double() + w @ beta.double()


@torch.no_grad()
def fold_norms(model: Architecture) -> None:
    """Leaves every LayerNorm with gamma 1 and beta 0, in place."""
    for reader in model.readers():
        norm = reader.norm
        for linear in reader.linears:
            weight, bias = folded(linear.weight, linear.bias, norm.weight, norm.bias)
            assign(linear.weight, weight)
            assign(linear.bias, bias)
        norm.weight.fill_(1)
        norm.bias.zero_()


@torch.no_grad()
def fold_attention_scale(model: Architecture) -> None:
    """q's weights take the attention scale over; it is 1 afterwards. In place."""
    for i, block in enumerate(model.encoder()):
        if block.attention is None:
            continue
        scale, last = block.config.scale, block.attention.q_norm or block.attention.q
        assign(last.weight, last.weight.double() * scale)
        assign(last.bias, last.bias.double() * scale)
        model.reconfigure(i, scale=1.0)
