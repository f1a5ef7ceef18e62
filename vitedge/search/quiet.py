"""One measurement at a time on a machine, and nothing of ours beside it: several workers would time each other."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from vitedge.cost import store


@contextmanager
def working() -> Iterator[None]:
    """For work that may go on beside other work, but not beside a measurement."""
    with _held(fcntl.LOCK_SH):
        yield


@contextmanager
def measuring() -> Iterator[None]:
    """For a measurement: waits until no worker of this user on this machine works or measures."""
    with _held(fcntl.LOCK_EX):
        yield


@contextmanager
def _held(kind: int) -> Iterator[None]:
    folder = store.folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".turn").open("w") as turn, (folder / ".measuring").open("w") as file:
        # Whoever waits keeps the turn, so that work that follows work does not keep a measurement waiting for ever.
        fcntl.flock(turn, fcntl.LOCK_EX)
        fcntl.flock(file, kind)
        fcntl.flock(turn, fcntl.LOCK_UN)
        yield
