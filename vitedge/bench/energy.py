"""Energy of the rails that this machine lets us read: Intel's and AMD's RAPL, a Jetson's INA3221 monitors.

The figure is the rail's whole draw while the model runs back to back, idle share included: what a battery
pays.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.bench.host import read, read_int
from vitedge.bench.latency import Infer


def rapl_domains(root: Path = Path("/")) -> list[Path]:
    """The packages whose energy counter can be read. Most kernels let only root do so."""
    found = sorted((root / "sys/class/powercap").glob("intel-rapl:?")) or []
    return [path for path in found if read_int(path / "energy_uj") is not None]


def ina3221_rails(root: Path = Path("/")) -> dict[str, tuple[Path, Path]]:
    """Rail -> (millivolts, milliamperes) of the monitors on a Jetson's board."""
    out = {}
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if not (read(monitor / "name") or "").startswith("ina3221"):
            continue
        for channel in (1, 2, 3):
            volts, amperes = monitor / f"in{channel}_input", monitor / f"curr{channel}_input"
            if read_int(volts) is not None and read_int(amperes) is not None:
                out[read(monitor / f"in{channel}_label") or f"rail{channel}"] = (volts, amperes)
    return out


def total_rail(rails: dict[str, tuple[Path, Path]]) -> tuple[str, tuple[Path, Path]] | None:
    """The rail that feeds all others (VDD_IN on Orin), or None: summing them would count some twice."""
    for name in ("VDD_IN", "VIN", "VIN_SYS_5V0", "VDD_IN_5V0", "SYS_VIN_HV"):
        if name in rails:
            return name, rails[name]
    return None


def rapl_uj(before: int, after: int, wrap: int | None) -> int:
    """The counter's difference in microjoules; it begins again at `wrap`."""
    return after - before if after >= before or not wrap else after + wrap + 1 - before


class _Sampler(threading.Thread):
    """Integrates a rail's power over time."""

    def __init__(self, rail: tuple[Path, Path], every_s: float = 0.02) -> None:
        super().__init__(daemon=True)
        self.rail, self.every_s, self.done = rail, every_s, threading.Event()
        self.milliwatts: list[float] = []

    def run(self) -> None:
        while not self.done.wait(self.every_s):
            volts, amperes = (read_int(path) for path in self.rail)
            if volts is not None and amperes is not None:
                self.milliwatts.append(volts * amperes / 1000)


def measure(
    infer: Infer, inputs: Sequence[np.ndarray], seconds: float, root: Path = Path("/")
) -> dict[str, Any] | None:
    """{"mj_per_image", "watts", "rail", "images"} over `seconds` of inferences, or None where no rail is
    read."""
    domains, rail = rapl_domains(root), total_rail(ina3221_rails(root))
    if not domains and rail is None:
        return None
    sampler = _Sampler(rail[1]) if rail else None
    before = [read_int(path / "energy_uj") or 0 for path in domains]
    if sampler:
        sampler.start()
    begin, images = time.perf_counter(), 0
    while (taken := time.perf_counter() - begin) < seconds or not images:
        pixels = inputs[images % len(inputs)]
        infer(pixels)
        images += len(pixels)
    taken = time.perf_counter() - begin
    if sampler and rail:
        sampler.done.set()
        sampler.join()
        if not sampler.milliwatts:
            return None
        millijoules, name = float(np.mean(sampler.milliwatts)) * taken, rail[0]
    else:
        after = [read_int(path / "energy_uj") or 0 for path in domains]
        wraps = [read_int(path / "max_energy_range_uj") for path in domains]
        millijoules = sum(map(rapl_uj, before, after, wraps)) / 1000
        name = "RAPL " + " + ".join(read(path / "name") or path.name for path in domains)
    return {
        "mj_per_image": millijoules / images,
        "watts": millijoules / 1000 / taken,
        "rail": name,
        "images": images,
    }
