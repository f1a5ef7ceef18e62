"""Which tensors stay in float16: the fewest cycles whose expected loss is within its limit, in few builds.

The parts that cost the NPU's convolutions next to nothing (the residual stream, LayerNorms, the head) are one step;
then come the patch embedding and the parts of the blocks, each of which the hardware computes as a group, by the noise
that each brings into the logits for its cycles. Noise of parts adds up, so a part is worth what its own is, where that
is more than its standard error. Pure: `try_` builds and measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitedge.targets.rknn.tensors import HEAD, NORM, PATCH, STREAM

# What float16 adds to the 1.23 million cycles of a ViT-Ti/16, by the vendor: 8,000 for these (all of it for the head),
# 40,000 for the patch embedding.
CHEAP = (STREAM, NORM, HEAD)
# Builds that look for parts which turn out not to be needed.
_DROPPED = 2
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
        lost, error: points of top-1 that its noise is expected to cost (of embeddings, percent of cosine that it
            does cost), and their standard error.
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


Try = Callable[[Sequence[str]], Trial]


def search(
    try_: Try, parts: Iterable[str], limit: float, ranked_by: Callable[[Sequence[str]], Sequence[str]]
) -> list[Trial]:
    """All trials, the one to take last.

    try_: builds and measures an assignment; parts: those that there are; limit: points that may be lost; ranked_by:
    puts parts of blocks in the order in which they become float16, after the second trial.
    Where none keeps it, the one that loses least is taken.
    """
    there = list(parts)
    trials = [try_(())]
    if trials[0].keeps(limit):
        return trials
    base = tuple(p for p in CHEAP if p in there)
    trials.append(try_(base))
    if trials[-1].keeps(limit):
        return trials
    ranked = ranked_by([p for p in there if p not in CHEAP])
    # Doubling, then halving: a long list of blocks is few builds.
    low, count = 0, min(1, len(ranked))
    while low < count:
        trials.append(try_(base + tuple(ranked[:count])))
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
        trial = try_(base + tuple(ranked[:middle]))
        trials.append(trial)
        low, high = (low, middle) if trial.keeps(limit) else (middle, high)
        best = trial if trial.keeps(limit) else best
    # A part before the last may be of little use once the others are in float16.
    for part in best.parts[len(base) : -1][::-1][:_DROPPED]:
        trial = try_(tuple(p for p in best.parts if p != part))
        trials.append(trial)
        best = trial if trial.keeps(limit) and trial.cycles < best.cycles else best
    return [*trials, best]


def rank(noise: Mapping[str, np.ndarray], cycles: Mapping[str, int]) -> list[str]:
    """The parts by the noise that each part's rounding makes, for each cycle that it takes in INT8 and so, in about
    the same measure, more in float16.

    noise: variance on each image [N]; cycles: the vendor's. Parts whose noise is within its standard error are left
    out.
    """
    gains = {}
    for part, power in noise.items():
        error = power.std(ddof=1) / np.sqrt(len(power)) if len(power) > 1 else 0.0
        if power.mean() > error:
            gains[part] = power.mean() / max(cycles.get(part, 0), 1)
    return sorted(gains, key=lambda part: -gains[part])
