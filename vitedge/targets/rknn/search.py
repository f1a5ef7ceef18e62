"""Which tensors stay in float16: the fewest cycles that keep the loss within its limit, in few builds.

The parts that cost the NPU's convolutions little (the residual stream, LayerNorms, the patch embedding, the head) are
one step; then come the parts of the blocks, by what each gains for its cycles. Pure: `try_` builds and measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

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
    """

    parts: tuple[str, ...]
    cycles: int
    agreement: float
    sqnr_db: float


Try = Callable[[Sequence[str], bool], Trial]


def search(try_: Try, parts: Iterable[str], floor: float) -> list[Trial]:
    """All trials on all images, the one to take last.

    try_: builds and measures an assignment; with True, on a few images, for ranking.
    parts: those that there are; floor: the agreement to reach.
    Where none reaches it, the best in agreement (then SQNR) is taken.
    """
    there = list(parts)
    trials = [try_((), False)]
    if trials[0].agreement >= floor:
        return trials
    base = tuple(p for p in CHEAP if p in there)
    trials.append(try_(base, False))
    if trials[-1].agreement >= floor:
        return trials
    ranked = rank(try_, base, [p for p in there if p not in CHEAP])
    # Doubling, then halving: a long list of blocks is few builds.
    low, count = 0, min(1, len(ranked))
    while low < count:
        trials.append(try_(base + tuple(ranked[:count]), False))
        if trials[-1].agreement >= floor:
            break
        low, count = count, min(2 * count, len(ranked))
    met = [t for t in trials if t.agreement >= floor]
    if not met:
        return [*trials, max(trials, key=lambda t: (t.agreement, t.sqnr_db))]
    best = met[-1]
    high = len(best.parts) - len(base)
    while high - low > 1:
        middle = (low + high) // 2
        trial = try_(base + tuple(ranked[:middle]), False)
        trials.append(trial)
        low, high = (low, middle) if trial.agreement >= floor else (middle, high)
        best = trial if trial.agreement >= floor else best
    return [*trials, best]


def rank(try_: Try, base: tuple[str, ...], candidates: Sequence[str]) -> list[str]:
    """The candidates by the noise that the logits lose, for each cycle more, with that one part in float16.

    SQNR, not agreement: it tells candidates apart on a few images. Those that gain nothing are left out.
    """
    start = try_(base, True)
    gains = {}
    for part in candidates:
        trial = try_((*base, part), True)
        noise = 10 ** (-start.sqnr_db / 10) - 10 ** (-trial.sqnr_db / 10)
        gains[part] = noise / max(trial.cycles - start.cycles, 1)
    return [part for part in sorted(gains, key=lambda p: -gains[p]) if gains[part] > 0]
