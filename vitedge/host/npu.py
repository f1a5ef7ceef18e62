"""What the kernel says of a Rockchip's NPU: its clock and its temperature.

Its clock moves with the governor, and it is throttled when hot: a latency without both can't be reproduced.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitedge.host.clocks import DeviceClock, device_clock, temperatures
from vitedge.host.files import ROOT


@dataclass(frozen=True)
class Npu:
    """Of the devfreq device `*.npu` (RK3588, RK356x) and the thermal zone `npu-thermal`."""

    clock: DeviceClock | None = None
    celsius: float | None = None


def npu_facts(root: str | Path = ROOT) -> Npu | None:
    """The NPU's state now, or None without one."""
    root = Path(root)
    clock = device_clock(("*.npu", "*npu*"), root)
    celsius = next((value for zone, value in temperatures(root).items() if "npu" in zone), None)
    return None if clock is None and celsius is None else Npu(clock, celsius)
