"""A streaming histogram: fixed memory, however many images it sees."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 4096


class Histogram:
    """Counts of values in `BINS` equal bins around zero, whose width doubles when a value falls outside."""

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.width = 0.0  # of a bin; the bins span +- BINS / 2 * width
        self.minimum, self.maximum = float("inf"), float("-inf")

    def update(self, x: Tensor) -> None:
        """Adds all values of `x`, of any shape; they must be finite."""
        low, high = (float(v) for v in torch.aminmax(x.detach()))
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        reach = max(abs(low), abs(high))
        if reach == 0 and not self.width:
            reach = 1e-30
        if not self.width:
            # A little room, so that the second batch seldom widens it.
            self.width = 2.5 * reach / BINS
        while reach >= self.width * BINS / 2:
            self._double()
        half = self.width * BINS / 2
        self.counts += torch.histc(x.detach().float(), BINS, -half, half).double()

    def _double(self) -> None:
        pairs = self.counts.view(-1, 2).sum(1)
        self.counts = torch.zeros_like(self.counts)
        quarter = BINS // 4
        self.counts[quarter : BINS - quarter] = pairs
        self.width *= 2

    @property
    def centres(self) -> Tensor:
        """The middle of each bin [BINS]."""
        return (torch.arange(BINS, dtype=torch.float64) - BINS / 2 + 0.5) * self.width
