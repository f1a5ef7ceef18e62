"""Resident memory of this process, from Linux's own count."""

from __future__ import annotations

import re
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_rss_mib() -> float | None:
    """The most memory that this process ever held, in MiB.

    VmHWM begins anew with each exec. getrusage's ru_maxrss would carry the parent's peak over.
    """
    return _field("VmHWM")


def rss_mib() -> float | None:
    """The memory that this process holds now, in MiB."""
    return _field("VmRSS")


def available_mib() -> float | None:
    """Memory that can be had without swapping, in MiB."""
    return _field("MemAvailable", Path("/proc/meminfo"))


def _field(name: str, path: Path = _STATUS) -> float | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.M)
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None
