"""Latency of several artifacts in one go: A B, B A, A B, ..., so that the machine's drift hits all alike.

The rounds are spread over several launches of the processes: two processes of the very same artifact differ
by some percent for as long as they live (where their memory lies, which core they are on), which no number
of rounds in one launch can see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from vitedge.bench import stats
from vitedge.bench.latency import WarmUp
from vitedge.bench.process import ArtifactFailed, ArtifactProcess
from vitedge.bench.schema import Latency, LatencyRatio

LEAST_CALLS = 10
ROUNDS = 20


@dataclass
class Timed:
    """What was found of one row: `launches` holds for each launch its rounds, each with its times in ns;
    `failure` is in words, or empty."""

    warm_up: WarmUp | None = None
    calls: int = 0
    launches: list[list[list[int]]] = field(default_factory=list)
    failure: str = ""

    def latency_ms(self, *, samples: int = 400) -> Latency | None:
        """Summary in ms over all rounds, with an even choice of at most `samples` sorted times for the
        plots."""
        taken = [np.asarray(one) for launch in self.launches for one in launch]
        if not taken:
            return None
        flat = np.sort(np.concatenate(taken)) / 1e6
        chosen = flat[np.unique(np.linspace(0, flat.size - 1, min(samples, flat.size)).round().astype(int))]
        shown = tuple(round(v, 4) for v in chosen.tolist())
        return Latency(**vars(stats.summary(flat)), rounds=len(taken), launches=len(self.launches), samples=shown)


def plan(median_ns: float, seconds: float, launches: int = 1) -> tuple[int, int]:
    """(rounds a launch, calls a round) for at least `seconds` and 10 calls in all launches together: 20
    rounds, or fewer where one call is long."""
    slice_s = seconds / ROUNDS
    calls = max(1, math.ceil(slice_s * 1e9 / max(median_ns, 1)))
    rounds = math.ceil(seconds * 1e9 / max(calls * median_ns, 1))
    return math.ceil(min(ROUNDS, max(LEAST_CALLS, rounds)) / launches), calls


def time_launch(
    rows: Mapping[str, ArtifactProcess],
    timed: Mapping[str, Timed],
    seconds: float = 3.0,
    launches: int = 1,
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Warms every row up, then times them in turns: one of `launches`. A row that fails drops out; the
    others go on.

    Args:
        rows: name -> row that is newly open and has its inputs.
        timed: name -> what was found in earlier launches; this one's times are added.
        seconds: how long each row is timed at least, in all launches together.
        advance: called with 1 in the end.
    """
    going: list[str] = []
    most = 0
    for name, row in rows.items():
        found = timed[name]
        try:
            least_s = min(0.5, seconds)
            warm = WarmUp(**row.ask("warm_up", least_s=least_s, most_s=max(5 * least_s, seconds)))
        except ArtifactFailed as failed:
            found.failure = failed.reason
            continue
        found.warm_up = found.warm_up or warm
        rounds, calls = plan(warm.median_ns, seconds, launches)
        # The first launch decides how many calls a round has, so that all launches weigh alike.
        found.calls = found.calls or calls
        found.launches.append([])
        most = max(most, rounds)
        going.append(name)
    for number in range(most):
        for name in list(going) if number % 2 == 0 else list(reversed(going)):
            try:
                # All rows take part in all rounds, so that every pair has the same number of them.
                timed[name].launches[-1].append(rows[name].ask("time", calls=timed[name].calls)["ns"])
            except ArtifactFailed as failed:
                timed[name].failure = failed.reason
                going.remove(name)
    advance(1)


def ratio(timed: Timed, baseline: Timed, to: str = "") -> LatencyRatio | None:
    """The ratio of two artifacts' latencies, the second's name being `to`; None where they have too few in common."""
    pairs = [
        (first[:count], second[:count])
        for first, second in zip(timed.launches, baseline.launches, strict=False)
        if (count := min(len(first), len(second)))
    ]
    a, b = (
        ([np.array([np.median(one) for one in launch]) for launch in side] for side in zip(*pairs, strict=True))
        if pairs
        else ([], [])
    )
    try:
        found = stats.paired_ratio(a, b)
    except ValueError:
        return None
    return LatencyRatio(to, found.ratio, (found.low, found.high), len(pairs), found.rounds)
