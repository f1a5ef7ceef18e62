"""What this CPU's 8-bit products do."""

from __future__ import annotations

import platform
from pathlib import Path

_EXACT = {"avx512_vnni", "avx_vnni", "amx_int8"}


def saturates(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU's product of uint8 and int8 saturates: x86 without VNNI adds pairs of products in 16 bits."""
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.is_file():
        return False
    flags = set(next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "").split())
    return not flags & _EXACT


SATURATION = "this CPU has no VNNI, and its sums of two products of uint8 and int8 saturate"
