"""Streamed second moments of what goes into a layer and what should come out of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


def _zeros(*size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64)


@dataclass
class Moments:
    """Weighted sums over tokens, in float64; memory is bounded by the widths squared.

    A batch's own products are float32 (its sums are short), their accumulation is float64.

    Attributes:
        inputs, outputs: widths of x and y; `outputs` 0 where only x is watched.
        weight: sum of the tokens' weights. tokens: their number.
    """

    inputs: int
    outputs: int = 0
    weight: float = 0.0
    tokens: int = 0
    x: Tensor = field(init=False)
    y: Tensor = field(init=False)
    xx: Tensor = field(init=False)
    xy: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.x, self.y = _zeros(self.inputs), _zeros(self.outputs)
        self.xx = _zeros(self.inputs, self.inputs)
        self.xy = _zeros(self.inputs, self.outputs)

    def add(self, x: Tensor, y: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Take in tokens x [..., inputs], y [..., outputs] and their weights [...]; 1 by default."""
        x = x.detach().reshape(-1, self.inputs).float()
        w = torch.ones(len(x)) if weights is None else weights.detach().reshape(-1).float()
        weighted = x * w[:, None]
        self.weight += float(w.double().sum())
        self.tokens += len(x)
        self.x += weighted.sum(0, dtype=torch.float64)
        self.xx += (weighted.T @ x).double()
        if y is not None:
            y = y.detach().reshape(-1, self.outputs).float()
            self.y += (y * w[:, None]).sum(0, dtype=torch.float64)
            self.xy += (weighted.T @ y).double()

    def select(self, kept: Tensor) -> Moments:
        """The moments of only some inputs."""
        part = Moments(len(kept), self.outputs, self.weight, self.tokens)
        part.x, part.y = self.x[kept], self.y
        part.xx, part.xy = self.xx[kept][:, kept], self.xy[kept]
        return part

    def mean(self) -> tuple[Tensor, Tensor]:
        """The means of x [inputs] and of y [outputs]."""
        return self.x / self.weight, self.y / self.weight

    def covariance(self) -> Tensor:
        """[inputs, inputs] of x around its mean."""
        mean, _ = self.mean()
        return self.xx / self.weight - torch.outer(mean, mean)

    def cross(self) -> Tensor:
        """[inputs, outputs] of x and y around their means."""
        mean_x, mean_y = self.mean()
        return self.xy / self.weight - torch.outer(mean_x, mean_y)


def damping_for(damping: float, moments: Moments, caution: float = 1.0) -> float:
    """More damping where there are few tokens for each input: what is fitted to them must hold on others too.

    caution: 1 where a layer's own output is to be restored, more where it shall also correct what came before,
        which is noise to it and is soon learnt by heart.
    """
    return damping + caution * moments.inputs / moments.tokens
