"""Clocks and temperatures now."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitedge.host.files import ROOT, number, read, read_int

# ARM's MIDR part numbers of the cores in edge boards (Linux, arch/arm64/include/asm/cputype.h).
_ARM_PARTS = {0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57"}
_ARM_PARTS |= {0xD08: "Cortex-A72", 0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76"}
_ARM_PARTS |= {0xD0C: "Neoverse-N1", 0xD41: "Cortex-A78", 0xD42: "Cortex-A78AE", 0xD46: "Cortex-A510"}


@dataclass(frozen=True)
class Cluster:
    """Cores that share a clock: their numbers, what they are called, and the clock's bounds."""

    cpus: str
    core: str | None = None
    min_mhz: int | None = None
    max_mhz: int | None = None
    now_mhz: int | None = None
    governor: str | None = None


@dataclass(frozen=True)
class DeviceClock:
    """The clock of a GPU or NPU; `locked` where it can't move, as after `jetson_clocks`."""

    now_mhz: int | None = None
    min_mhz: int | None = None
    max_mhz: int | None = None
    governor: str | None = None
    locked: bool = False


def arm_cores(info: str) -> dict[int, str]:
    """Core number -> ARM's name of it, from the text of /proc/cpuinfo."""
    found = re.findall(r"^processor\s*:\s*(\d+)$(?:.+?)^CPU part\s*:\s*(0x[0-9a-f]+)$", info, re.M | re.S)
    return {int(cpu): _ARM_PARTS.get(int(part, 16), f"ARM part {part}") for cpu, part in found}


def cpu_clusters(root: Path = ROOT) -> tuple[Cluster, ...]:
    """The groups of cores that share a clock."""
    cores = arm_cores(read(root / "proc/cpuinfo") or "")
    out = []
    for policy in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"), key=number):
        cpus = read(policy / "affected_cpus") or read(policy / "related_cpus") or str(number(policy))
        low, high, now = (_mhz(read_int(policy / f"scaling_{which}_freq"), 1e3) for which in ("min", "max", "cur"))
        core = cores.get(int(cpus.split()[0])) if cpus.split() else None
        out.append(Cluster(cpus, core, low, high, now, read(policy / "scaling_governor")))
    return tuple(out)


def clocks_mhz(root: Path = ROOT) -> list[int]:
    """The present clock of each group of cores; empty where the kernel doesn't tell."""
    return [cluster.now_mhz for cluster in cpu_clusters(root) if cluster.now_mhz is not None]


def temperatures(root: Path = ROOT) -> dict[str, float]:
    """Thermal zone -> degrees Celsius, of the zones that can be read."""
    out = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*"), key=number):
        milli = read_int(zone / "temp")
        if milli is not None and -40_000 < milli < 200_000:  # an unused sensor reads as -256 degrees and the like
            out[read(zone / "type") or zone.name] = milli / 1000
    return out


def device_clock(patterns: Sequence[str], root: Path = ROOT) -> DeviceClock | None:
    """Of the first device below `sys/class/devfreq` that a pattern names, or None."""
    for pattern in patterns:
        for folder in sorted((root / "sys/class/devfreq").glob(pattern)):
            now, low, high = (_mhz(read_int(folder / f"{which}_freq"), 1e6) for which in ("cur", "min", "max"))
            if now is not None:
                return DeviceClock(now, low, high, read(folder / "governor"), low is not None and low == high)
    return None


def _mhz(value: int | None, per_mhz: float) -> int | None:
    return None if value is None else round(value / per_mhz)
