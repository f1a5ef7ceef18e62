"""Which tensors stay in float16: the fewest cycles whose expected loss is within its limit, in few builds.

The parts that cost the NPU's convolutions little (the residual stream, LayerNorms, the patch embedding, the head) are
one step; then come the parts of the blocks, each of which the hardware computes as a group, by the noise that each
takes from the logits for its cycles. Noise of parts adds up, so a part is worth what its own takes away, where that
is more than its standard error. Pure: `try_` builds and measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vitedge.targets.rknn.tensors import HEAD, NORM, PATCH, STREAM

CHEAP = (STREAM, NORM, PATCH, HEAD)
# Outside the blocks: what even `--preset full` may keep in float16.
OUTSIDE = (PATCH, HEAD)


@dataclass(frozen=True)
class Trial:
    """One assignment as it was built and measured.

    Attributes:
        parts: those in float16.
        cycles: the vendor's total.
        agreement: share of images with the float model's top-1.
        sqnr_db: of the logits.
        lost, error: points of top-1 that its noise is expected to cost, and their standard error.
        power: variance of the noise on each image that it was measured on.
    """

    parts: tuple[str, ...]
    cycles: int
    agreement: float
    sqnr_db: float
    lost: float
    error: float
    power: tuple[float, ...] = ()

    def keeps(self, limit: float) -> bool:
        """Whether it is likely to lose at most so many points on other images too."""
        return self.lost + self.error <= limit


Try = Callable[[Sequence[str], bool], Trial]


def search(try_: Try, parts: Iterable[str], limit: float) -> list[Trial]:
    """All trials on all images, the one to take last.

    try_: builds and measures an assignment; with True, on a few images, for ranking.
    parts: those that there are; limit: points that may be lost.
    Where none keeps it, the one that loses least is taken.
    """
    there = list(parts)
    trials = [try_((), False)]
    if trials[0].keeps(limit):
        return trials
    base = tuple(p for p in CHEAP if p in there)
    trials.append(try_(base, False))
    if trials[-1].keeps(limit):
        return trials
    ranked = rank(try_, base, [p for p in there if p not in CHEAP])
    # Doubling, then halving: a long list of blocks is few builds.
    low, count = 0, min(1, len(ranked))
    while low < count:
        trials.append(try_(base + tuple(ranked[:count]), False))
        if trials[-1].keeps(limit):
            break
        low, count = count, min(2 * count, len(ranked))
    met = [t for t in trials if t.keeps(limit)]
    if not met:
        return [*trials, min(trials, key=lambda t: (t.lost, -t.sqnr_db))]
    best = met[-1]
    high = len(best.parts) - len(base)
    while high - low > 1:
        middle = (low + high) // 2
        trial = try_(base + tuple(ranked[:middle]), False)
        trials.append(trial)
        low, high = (low, middle) if trial.keeps(limit) else (middle, high)
        best = trial if trial.keeps(limit) else best
    return [*trials, best]


def rank(try_: Try, base: tuple[str, ...], candidates: Sequence[str]) -> list[str]:
    """The candidates by the noise that the logits lose, for each cycle more, with that one part in float16.

    Noise, not agreement: it tells candidates apart on a few images, which are the same for all. Those whose gain is
    within its standard error are left out.
    """
    start = try_(base, True)
    gains = {}
    for part in candidates:
        trial = try_((*base, part), True)
        less = np.asarray(start.power) - np.asarray(trial.power)
        error = less.std(ddof=1) / np.sqrt(len(less)) if len(less) > 1 else 0.0
        if less.mean() > error:
            gains[part] = less.mean() / max(trial.cycles - start.cycles, 1)
    return sorted(gains, key=lambda part: -gains[part])
