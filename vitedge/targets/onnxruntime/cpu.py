"""What this CPU's 8-bit products do."""

from __future__ import annotations

import platform
from pathlib import Path

_EXACT = {"avx512_vnni", "avx_vnni", "amx_int8"}


def saturation_warnings(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """A warning where the CPU's product of uint8 and int8 saturates: x86 without VNNI adds pairs in 16 bits."""
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.is_file():
        return []
    flags = set(next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "").split())
    if flags & _EXACT:
        return []
    return [
        "this CPU has no VNNI, and its sums of two 8-bit products saturate: compress with `--weight-bits 7` "
        "if the artifact is to run here"
    ]
