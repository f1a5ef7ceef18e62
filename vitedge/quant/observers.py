"""From a histogram to a range. An observer is a function, registered under its name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitedge.options import register
from vitedge.quant.histogram import Histogram
from vitedge.quant.options import QuantOptions
from vitedge.quant.scheme import Activation
from vitedge.quant.uniform import activation_for

Range = tuple[float, float]
OBSERVERS: dict[str, Callable[[Histogram, QuantOptions], Range]] = {}


def observer(function: Callable[[Histogram, QuantOptions], Range]) -> Callable[[Histogram, QuantOptions], Range]:
    """Registers an observer under its function's name."""
    OBSERVERS[function.__name__] = function
    register("observer", function.__name__)
    return function


@observer
def minmax(histogram: Histogram, options: QuantOptions) -> Range:
    """All that was seen."""
    return histogram.minimum, histogram.maximum


@observer
def percentile(histogram: Histogram, options: QuantOptions) -> Range:
    """The range that leaves (100 - percentile) / 2 percent out at each end."""
    share = histogram.counts.cumsum(0) / histogram.counts.sum()
    tail = (1 - options.percentile / 100) / 2
    inside = ((share > tail) & (share - histogram.counts / histogram.counts.sum() < 1 - tail)).nonzero()
    edges = histogram.centres[inside.flatten()]
    half = histogram.width / 2
    return max(float(edges[0]) - half, histogram.minimum), min(float(edges[-1]) + half, histogram.maximum)


@observer
def mse(histogram: Histogram, options: QuantOptions) -> Range:
    """The range with the least mean squared error, rounding and clipping together."""
    return _search(histogram, options, _squared_error)


@observer
def entropy(histogram: Histogram, options: QuantOptions) -> Range:
    """The range whose quantised histogram has the least Kullback-Leibler divergence from the true one
    (Migacz, GTC 2017), in both directions at once."""
    return _search(histogram, options, _divergence)


def _search(histogram: Histogram, options: QuantOptions, cost: Callable[[Tensor, Tensor, Activation], float]) -> Range:
    """The best of shrunken ranges: both ends together first, then each by itself around that."""
    low, high = histogram.minimum, histogram.maximum
    # Below a floor that was put under the histogram, clipping costs nothing.
    used = (histogram.counts > 0) & (histogram.centres >= low - histogram.width)
    values, counts = histogram.centres[used], histogram.counts[used]

    def of(a: float, b: float) -> float:
        return cost(values, counts, activation_for(low * a, high * b, options.symmetric))

    grid = torch.linspace(1.0, 0.1, 37).tolist()
    both = min(grid, key=lambda f: of(f, f))
    near = [f for f in grid if abs(f - both) < 0.26] + [1.0]
    upper = min(near, key=lambda f: of(both, f))
    lower = min(near, key=lambda f: of(f, upper))
    return low * lower, high * upper


def _squared_error(values: Tensor, counts: Tensor, to: Activation) -> float:
    # A bin is narrower than a step: its middle stands for it.
    q = (values / to.scale).round().add(to.zero_point).clamp(0, 2**to.bits - 1) - to.zero_point
    return float(((values - q * to.scale).square() * counts).sum())


def _divergence(values: Tensor, counts: Tensor, to: Activation) -> float:
    levels = (values / to.scale).round().add(to.zero_point).clamp(0, 2**to.bits - 1).long()
    mass = torch.zeros(2**to.bits, dtype=torch.float64).scatter_add_(0, levels, counts)
    bins = torch.zeros(2**to.bits, dtype=torch.float64).scatter_add_(0, levels, torch.ones_like(counts))
    spread = mass[levels] / bins[levels]  # each level's mass, evenly over the bins that fall into it
    p, q = counts / counts.sum(), spread / spread.sum()
    # Clipped values sit far from their level, which a divergence of masses alone does not see.
    low, high = to.range
    clipped = ((values < low - to.scale / 2) | (values > high + to.scale / 2)).double()
    return float((p * (p / q).log()).sum() + (p * clipped).sum())


def observe(histogram: Histogram, options: QuantOptions) -> Activation:
    """Scale and zero point of one activation."""
    low, high = OBSERVERS[options.observer](histogram, options)
    return activation_for(low, high, options.symmetric)
