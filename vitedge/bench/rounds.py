"""Latency of several artifacts in one go: A B, B A, A B, ..., so that the machine's drift hits all alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitedge.bench import stats
from vitedge.bench.row import Row, RowFailed

LEAST_CALLS = 10
ROUNDS = 20


@dataclass
class Timed:
    """What the rounds found of one row: `rounds` holds each round's times in ns; `failure` in words, or
    empty."""

    warm_up: dict[str, Any] | None = None
    rounds: list[list[int]] = field(default_factory=list)
    failure: str = ""

    def latency_ms(self, *, samples: int = 400) -> dict[str, Any] | None:
        """Summary in ms over all rounds, with an even choice of at most `samples` sorted times for the
        plots."""
        flat = np.sort(np.concatenate([np.asarray(one) for one in self.rounds])) / 1e6 if self.rounds else None
        if flat is None:
            return None
        chosen = flat[np.unique(np.linspace(0, flat.size - 1, min(samples, flat.size)).round().astype(int))]
        return stats.summary(flat) | {
            "rounds": len(self.rounds),
            "samples": [round(v, 4) for v in chosen.tolist()],
        }


def plan(median_ns: float, seconds: float) -> tuple[int, int]:
    """(rounds, calls a round) for at least `seconds` and 10 calls: 20 rounds, or fewer where one call is
    long."""
    slice_s = seconds / ROUNDS
    calls = max(1, math.ceil(slice_s * 1e9 / max(median_ns, 1)))
    rounds = math.ceil(seconds * 1e9 / max(calls * median_ns, 1))
    return min(ROUNDS, max(LEAST_CALLS, rounds)), calls


def time_rows(
    rows: Mapping[str, Row], seconds: float = 3.0, advance: Callable[[int], None] = lambda n: None
) -> dict[str, Timed]:
    """Warms every row up, then times them in turns. A row that fails drops out; the others go on.

    Args:
        rows: name -> row that is open and has its inputs.
        seconds: how long each row is timed, at least.
        advance: called with 1 after each round.
    """
    out = {name: Timed() for name in rows}
    plans: dict[str, tuple[int, int]] = {}
    for name, row in rows.items():
        try:
            warm = row.ask("warm_up", least_s=min(0.5, seconds), most_s=max(5 * min(0.5, seconds), seconds))
            out[name].warm_up = warm
            plans[name] = plan(warm["median_ns"], seconds)
        except RowFailed as failed:
            out[name].failure = failed.reason
    most = max((rounds for rounds, _ in plans.values()), default=0)
    for number in range(most):
        order = list(plans) if number % 2 == 0 else list(reversed(plans))
        for name in order:
            try:
                # All rows take part in all rounds, so that every pair has the same number of them.
                out[name].rounds.append(rows[name].ask("time", calls=plans[name][1])["ns"])
            except RowFailed as failed:
                out[name].failure = failed.reason
                del plans[name]
        advance(1)
    return out


def ratio(timed: Timed, baseline: Timed) -> dict[str, Any] | None:
    """{"ratio", "ci95", "rounds"} of two rows' latencies from the rounds that both took part in, or None."""
    rounds = min(len(timed.rounds), len(baseline.rounds))
    if rounds < 5:
        return None
    a, b = ([float(np.median(one)) for one in t.rounds[:rounds]] for t in (timed, baseline))
    found = stats.paired_ratio(np.array(a), np.array(b))
    return {"ratio": found.ratio, "ci95": [found.low, found.high], "rounds": rounds}
