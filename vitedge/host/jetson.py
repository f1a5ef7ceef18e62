"""A Jetson from its own files: L4T and JetPack, power mode, GPU clocks, temperatures, power rails.

A Jetson's latency depends on its power mode and on whether its clocks are locked (`jetson_clocks`) as much as
on the model; a figure without them can't be reproduced.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from vitedge.host.clocks import DeviceClock, device_clock, temperatures
from vitedge.host.files import ROOT, read
from vitedge.host.power import ina3221_rails, rails_mw, total_rail

# L4T release -> JetPack, by NVIDIA's archive of releases; longer prefixes first.
_JETPACKS = (
    ("38.2", "7.0"),
    ("36.4.4", "6.2.1"),
    ("36.4.3", "6.2"),
    ("36.4", "6.1"),
    ("36.3", "6.0"),
    ("36.2", "6.0 DP"),
    ("35.6", "5.1.4"),
    ("35.5", "5.1.3"),
    ("35.4", "5.1.2"),
)
_GPU_CLOCKS = ("*.gpu", "*.ga10b", "*.gv11b", "*.gp10b", "gpu-gpc-0")


@dataclass(frozen=True)
class Jetson:
    """What a Jetson is and how it is set; a figure that can't be read is None."""

    l4t: str
    jetpack: str
    model: str | None = None
    power_mode: str | None = None
    gpu_clock: DeviceClock | None = None
    celsius: dict[str, float] = field(default_factory=dict)
    power_rail: str | None = None
    rails_mw: dict[str, float] = field(default_factory=dict)


def l4t_release(root: Path = ROOT) -> str | None:
    """ "36.4.3" from /etc/nv_tegra_release, or None where this is no Jetson."""
    text = read(root / "etc/nv_tegra_release") or ""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else None


def jetpack(l4t: str) -> str:
    """The JetPack that ships this L4T: "6.2", or "6.x" where the release is not known here."""
    for release, version in _JETPACKS:
        if l4t == release or l4t.startswith(f"{release}."):
            return version
    major = int(l4t.split(".")[0])
    return f"{ {35: 5, 36: 6, 38: 7}[major] }.x" if major in (35, 36, 38) else "unknown"


def power_mode(root: Path = ROOT) -> str | None:
    """The chosen mode with its name, "MAXN_SUPER (2)", from what nvpmodel writes and its table of modes."""
    found = re.search(r"pmode:(\d+)", read(root / "var/lib/nvpmodel/status") or "")
    if not found:
        return None
    number = int(found[1])
    table = read(root / "etc/nvpmodel.conf") or ""
    names = dict(re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", table))
    return f"{names[str(number)]} ({number})" if str(number) in names else str(number)


def gpu_clock(root: Path = ROOT) -> DeviceClock | None:
    """The clock of the GPU, or None."""
    return device_clock(_GPU_CLOCKS, root)


def jetson_facts(root: str | Path = ROOT) -> Jetson | None:
    """What this Jetson is and how it is set, or None where this is no Jetson."""
    root = Path(root)
    l4t = l4t_release(root)
    if l4t is None:
        return None
    total = total_rail(ina3221_rails(root))
    return Jetson(
        l4t,
        jetpack(l4t),
        model=read(root / "proc/device-tree/model"),
        power_mode=power_mode(root),
        gpu_clock=gpu_clock(root),
        celsius=temperatures(root),
        power_rail=total.name if total else None,
        rails_mw=rails_mw(root),
    )
