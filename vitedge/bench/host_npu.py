"""What the kernel says of a Rockchip's NPU: its clock and its temperature.

Its clock moves with the governor, and it is throttled when hot: a latency without both can't be reproduced.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitedge.bench.host import temperatures
from vitedge.bench.host_jetson import device_clock


def npu_facts(root: str | Path = "/") -> dict[str, Any] | None:
    """{"clock": {"now_mhz", "min_mhz", "max_mhz", "governor", "locked"}, "celsius"}, or None without an NPU.

    Of the devfreq device `*.npu` (RK3588, RK356x) and the thermal zone `npu-thermal`.
    """
    root = Path(root)
    clock = device_clock(root, ("*.npu", "*npu*"))
    celsius = next((value for zone, value in temperatures(root).items() if "npu" in zone), None)
    return None if clock is None and celsius is None else {"clock": clock, "celsius": celsius}
