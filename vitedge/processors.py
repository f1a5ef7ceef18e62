"""How many processors this process may use, and a check of the threads that are asked for."""

from __future__ import annotations

import os

from vitedge.errors import VitedgeError


def usable_processors() -> int:
    """The processors in the affinity mask: fewer than the machine's in a container or under taskset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def checked_threads(threads: int | None) -> int:
    """The threads to use: all usable processors by default.

    Raises VitedgeError where more are asked for: a runtime's threads spin while they wait, and two on one
    processor are many times slower than one.
    """
    usable = usable_processors()
    if threads is None:
        return usable
    if not 1 <= threads <= usable:
        raise VitedgeError(
            f"{threads} threads were asked for, and this process may use {usable} processors.",
            "Threads beyond the processors wait for each other." if threads > usable else "",
            f"Give between 1 and {usable} with --threads.",
        )
    return threads
