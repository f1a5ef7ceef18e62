"""LayerNorm's gamma and beta folded into the Linears that read it, the attention scale into q. Exact."""

from __future__ import annotations

import torch
from torch import nn

from vitedge.condition.surgery import assign
from vitedge.vit.architecture import Architecture


@torch.no_grad()
def fold_norms(model: Architecture) -> None:
    """Leaves every LayerNorm with gamma 1 and beta 0, in place (with a register, its row takes beta's place)."""
    for reader in model.readers():
        for linear in reader.linears:
            offset = reader.spread(reader.offset.double(), linear)
            assign(linear.bias, linear.bias.double() + linear.weight.double() @ offset)
        reader.offset.zero_()
        gamma = reader.norm.weight.double()
        for linear in reader.gated_linears:
            assign(linear.weight, linear.weight.double() * reader.spread(gamma, linear))
        assign(reader.norm.bias, reader.norm.bias.double() / torch.where(gamma == 0, torch.ones_like(gamma), gamma))
        reader.norm.weight.fill_(1)


@torch.no_grad()
def fold_attention_scale(model: Architecture) -> None:
    """q's weights take the attention scale over; it is 1 afterwards. In place."""
    for i, block in enumerate(model.encoder()):
        if block.attention is None or block.config.cosine:  # whose scale stands by itself
            continue
        scale, last = block.config.scale, block.attention.q_norm or block.attention.q
        assert isinstance(last, (nn.LayerNorm, nn.Linear))
        assign(last.weight, last.weight.double() * scale)
        assign(last.bias, last.bias.double() * scale)
        model.reconfigure(i, scale=1.0)
