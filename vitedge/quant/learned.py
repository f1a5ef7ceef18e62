"""Quantisers whose step sizes learn: LSQ (Esser et al., arXiv 1902.08153)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitedge.prune.fit import SPARSE
from vitedge.quant.scheme import Activation
from vitedge.vit.convolution import Convolution, convolve
from vitedge.vit.layers import Site

# A step size stays within this share of the one that it started from: Adam's first steps are large.
NARROWEST, WIDEST = 0.1, 10.0


class _LearnedRound(torch.autograd.Function):
    """round(x / scale), clamped to [low, high], times scale; straight through for x, LSQ's gradient for scale.

    With q = round(x / scale): dy/dx is 1 inside the range and 0 outside, dy/dscale is q - x / scale inside and the
    bound outside (equation 3 of the paper), times `share`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: float, high: float, share: float) -> Tensor:
        # Four passes that vectorise: several times faster than torch's own fake quantisation on a CPU.
        y = (x / scale).round_().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(x, y, scale)
        ctx.bounds = low, high, share
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale = ctx.saved_tensors
        (grad,), (low, high, share) = grads, ctx.bounds
        if scale.numel() == 1 and x.device.type == "cpu":  # reading a number would hold a GPU up
            s = float(scale)
            inside = torch.ops.aten.hardtanh_backward(grad, x, low * s, high * s)
            moved = torch.dot(grad.flatten(), y.flatten()) - torch.dot(inside.flatten(), x.flatten())
            moved = moved.reshape(scale.shape)
        else:
            ratio = x / scale
            inside = grad * ((ratio > low) & (ratio < high))
            moved = (grad * y - inside * x).sum_to_size(scale.shape)
        return inside, moved / scale * share, None, None, None


def learned_round(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """`x` rounded to multiples of `scale` (broadcast to x) between low and high steps; both learn.

    The gradient of a step size is scaled by 1 / sqrt(values a step size has * high), as the paper's section 2.2 asks.
    """
    share = 1 / math.sqrt(x.numel() / scale.numel() * max(high, 1))
    return _LearnedRound.apply(x, scale, low, high, share)


class LearnedSite(Site):
    """A site that rounds with step sizes that learn; zero points are integers and stay.

    parts: (first channel, one past the last, scheme) as in `fake.FakeQuant`. `factor` [parts]: each step size as a
    multiple of the one it started from, so that one learning rate fits all.
    """

    base: Tensor

    def __init__(self, parts: Sequence[tuple[int, int, Activation | None]]) -> None:
        super().__init__()
        self.parts = tuple(parts)
        base = [1.0 if to is None else to.scale for _, _, to in self.parts]
        self.register_buffer("base", torch.tensor(base), persistent=False)
        self.factor = nn.Parameter(torch.ones(len(base)))

    def forward(self, x: Tensor) -> Tensor:
        scales = self.scales()
        if len(self.parts) == 1:
            return self._round(x.float(), scales[:1], self.parts[0][2])
        pieces = [self._round(x[..., a:b].float(), scales[i : i + 1], to) for i, (a, b, to) in enumerate(self.parts)]
        return torch.cat(pieces, -1)

    @staticmethod
    def _round(x: Tensor, scale: Tensor, to: Activation | None) -> Tensor:
        if to is None:
            return x
        return learned_round(x.contiguous(), scale, -to.zero_point, 2**to.bits - 1 - to.zero_point)

    def scales(self) -> Tensor:
        """Step sizes [parts]."""
        return self.base * self.factor.clamp(NARROWEST, WIDEST)

    def learned(self) -> list[Activation | None]:
        """The scheme of each part as it stands."""
        return [
            None if to is None else Activation(float(scale), to.zero_point, to.bits)
            for scale, (_, _, to) in zip(self.scales().detach(), self.parts, strict=True)
        ]


class _Learned:
    """What Linear and convolution share: integer weights with a step size a row and group of columns.

    alive: of the weight's shape, where it is sparse: what else is 0 and stays so.
    """

    weight: Tensor
    base: Tensor
    factor: nn.Parameter
    column_groups: tuple[int, ...]
    top: int
    alive: Tensor | None

    def steps(self) -> Tensor:
        """Step sizes, of the weight's shape or broadcast to it."""
        factor = self.factor.clamp(NARROWEST, WIDEST)
        if len(self.column_groups) > 1:
            sizes = torch.tensor(self.column_groups, device=factor.device)
            factor = factor.repeat_interleave(sizes, 1, output_size=sum(self.column_groups))
        return self.base * factor.reshape(*factor.shape, *[1] * (self.weight.ndim - 2))

    def rounded(self) -> Tensor:
        """The weight as its integers give it."""
        weight = self.weight if self.alive is None else self.weight * self.alive
        return learned_round(weight, self.steps(), -self.top, self.top)

    @torch.no_grad()
    def integers(self) -> Tensor:
        """int8, of the weight's shape."""
        integers = (self.weight / self.steps()).round().clamp(-self.top, self.top).to(torch.int8)
        return integers if self.alive is None else integers * self.alive


class LearnedLinear(_Learned, nn.Linear):
    """A Linear with rounded weights. `base` [out, in] or [out, 1] and `factor` [out, groups]: step sizes as they
    started, and what they are multiplied by; groups: sizes of the groups of columns with step sizes of their own."""

    def __init__(self, linear: nn.Linear, base: Tensor, groups: tuple[int, ...], bits: int) -> None:
        nn.Linear.__init__(self, linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        _adopt(self, linear, base, groups, bits)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.rounded(), self.bias)


class LearnedConv(_Learned, Convolution):
    """A convolution with rounded weights; `base` [out, channels, 1, 1] or [out, 1, 1, 1], `factor` [out, 1]."""

    def __init__(self, conv: Convolution, base: Tensor, bits: int) -> None:
        with torch.device("meta"):
            Convolution.__init__(
                self,
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size[0],
                conv.stride[0],
                conv.pads,
                conv.groups,
            )
        _adopt(self, conv, base, (conv.in_channels,), bits)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.rounded(), self.bias, self.stride, self.pads, self.groups)


def _adopt(layer: Any, source: nn.Module, base: Tensor, groups: tuple[int, ...], bits: int) -> None:
    layer.weight, layer.bias = nn.Parameter(source.weight.detach().clone()), source.bias  # type: ignore[operator]
    layer.column_groups = groups
    layer.top = 2 ** (bits - 1) - 1
    layer.register_buffer("base", base, persistent=False)
    zero = layer.weight.detach() == 0
    # A pattern of zeros stays: a sparse weight learns between them.
    layer.register_buffer("alive", ~zero if float(zero.float().mean()) > SPARSE else None, persistent=False)
    layer.factor = nn.Parameter(torch.ones(len(base), len(groups)))
