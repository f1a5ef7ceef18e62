"""A worker whose candidates take a moment and cost what their number says: `python worker.py STORAGE COUNT LOG`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from vitedge.search.claims import Claims, open_study
from vitedge.search.space import Candidate


def candidates(count: int) -> list[Candidate]:
    return [Candidate(round(0.01 * n, 4), "macs", "auto", False, "int8", "linear") for n in range(count)]


def result(candidate: Candidate) -> tuple[float, float]:
    return 1 - candidate.share, 1 - candidate.share**2


def main(storage: str, count: int, log: Path) -> None:
    claims = Claims(open_study(storage, "test", "p50-ms"), beat_s=0.2, grace_s=2.0)
    line = candidates(count)
    while True:
        claim = claims.claim(line)
        if claim is None:
            if not claims.open(line):
                return
            time.sleep(0.05)
            continue
        with claims.beating(claim):
            with log.open("a") as file:
                file.write(f"{claims.worker} {claim.candidate.key}\n")
            time.sleep(0.15)
            claims.finish(claim, result(claim.candidate), {"cost": result(claim.candidate)[0]})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
