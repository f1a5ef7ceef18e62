"""What a Jetson says of itself, from its files: L4T and JetPack, power mode, GPU clocks, temperatures, power
rails.

A Jetson's latency depends on its power mode and on whether its clocks are locked (`jetson_clocks`) as much as
on the model; a figure without them can't be reproduced.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vitedge.bench.energy import ina3221_rails, total_rail
from vitedge.bench.host import read, read_int, temperatures

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


def l4t_release(root: Path = Path("/")) -> str | None:
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


def power_mode(root: Path = Path("/")) -> str | None:
    """The chosen mode with its name, "MAXN_SUPER (2)", from what nvpmodel writes and its table of modes."""
    found = re.search(r"pmode:(\d+)", read(root / "var/lib/nvpmodel/status") or "")
    if not found:
        return None
    number = int(found[1])
    table = read(root / "etc/nvpmodel.conf") or ""
    names = dict(re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", table))
    return f"{names[str(number)]} ({number})" if str(number) in names else str(number)


def gpu_clock(root: Path = Path("/")) -> dict[str, Any] | None:
    """{"now_mhz", "min_mhz", "max_mhz", "governor", "locked"} of the GPU, or None.

    "locked" is true where the clock can't move, as after `jetson_clocks`.
    """
    return device_clock(root, _GPU_CLOCKS)


def device_clock(root: Path, patterns: tuple[str, ...]) -> dict[str, Any] | None:
    """The same of the first device below `sys/class/devfreq` that a pattern names."""
    for pattern in patterns:
        for folder in sorted((root / "sys/class/devfreq").glob(pattern)):
            hertz = {short: read_int(folder / f"{short}_freq") for short in ("cur", "min", "max")}
            if hertz["cur"] is None:
                continue
            mhz = {k: None if v is None else round(v / 1e6) for k, v in hertz.items()}
            return {
                "now_mhz": mhz["cur"],
                "min_mhz": mhz["min"],
                "max_mhz": mhz["max"],
                "governor": read(folder / "governor"),
                "locked": mhz["min"] is not None and mhz["min"] == mhz["max"],
            }
    return None


def rails_mw(root: Path = Path("/")) -> dict[str, float]:
    """Rail -> milliwatts now, of the board's INA3221 monitors; they overlap, so they don't add up."""
    out = {}
    for name, (volts, amperes) in ina3221_rails(root).items():
        millivolts, milliamperes = read_int(volts), read_int(amperes)
        if millivolts is not None and milliamperes is not None:
            out[name] = millivolts * milliamperes / 1000
    return out


def jetson_facts(root: str | Path = "/") -> dict[str, Any] | None:
    """What this Jetson is and how it is set, or None where this is no Jetson. A figure not read is None."""
    root = Path(root)
    l4t = l4t_release(root)
    if l4t is None:
        return None
    total = total_rail(ina3221_rails(root))
    return {
        "model": read(root / "proc/device-tree/model"),
        "l4t": l4t,
        "jetpack": jetpack(l4t),
        "power_mode": power_mode(root),
        "gpu_clock": gpu_clock(root),
        "celsius": temperatures(root),
        "power_rail": total[0] if total else None,
        "rails_mw": rails_mw(root),
    }
