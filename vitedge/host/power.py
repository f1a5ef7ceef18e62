"""Power rails that this machine lets us read: Intel's and AMD's RAPL, a Jetson's INA3221 monitors."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitedge.host.files import ROOT, read, read_int


@dataclass(frozen=True)
class Rail:
    """One channel of a monitor: files of its millivolts and milliamperes."""

    name: str
    volts: Path
    amperes: Path

    def milliwatts(self) -> float | None:
        """Its power now, or None where it can't be read."""
        millivolts, milliamperes = read_int(self.volts), read_int(self.amperes)
        return None if millivolts is None or milliamperes is None else millivolts * milliamperes / 1000


def ina3221_rails(root: Path = ROOT) -> dict[str, Rail]:
    """Rail by its name, of the monitors on a Jetson's board; rails overlap, so their powers don't add up."""
    out = {}
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if not (read(monitor / "name") or "").startswith("ina3221"):
            continue
        for channel in (1, 2, 3):
            name = read(monitor / f"in{channel}_label") or f"rail{channel}"
            rail = Rail(name, monitor / f"in{channel}_input", monitor / f"curr{channel}_input")
            if rail.milliwatts() is not None:
                out[name] = rail
    return out


def total_rail(rails: dict[str, Rail]) -> Rail | None:
    """The rail that feeds all others (VDD_IN on Orin), or None: summing them would count some twice."""
    names = ("VDD_IN", "VIN", "VIN_SYS_5V0", "VDD_IN_5V0", "SYS_VIN_HV")
    return next((rails[name] for name in names if name in rails), None)


def rails_mw(root: Path = ROOT) -> dict[str, float]:
    """Rail -> milliwatts now."""
    found = {name: rail.milliwatts() for name, rail in ina3221_rails(root).items()}
    return {name: power for name, power in found.items() if power is not None}


def rapl_domains(root: Path = ROOT) -> list[Path]:
    """The packages whose energy counter can be read. Most kernels let only root do so."""
    found = sorted((root / "sys/class/powercap").glob("intel-rapl:?"))
    return [path for path in found if read_int(path / "energy_uj") is not None]


def rapl_uj(before: int, after: int, wrap: int | None) -> int:
    """The counter's difference in microjoules; it begins again at `wrap`."""
    return after - before if after >= before or not wrap else after + wrap + 1 - before


class EnergyMeter:
    """Millijoules that the machine draws between `start` and `stop`; `name` is of what is read."""

    def __init__(self, root: Path = ROOT) -> None:
        self.domains, self.rail = rapl_domains(root), total_rail(ina3221_rails(root))
        self.readable = bool(self.domains) or self.rail is not None
        domains = "RAPL " + " + ".join(read(path / "name") or path.name for path in self.domains)
        self.name = self.rail.name if self.rail else domains

    def start(self) -> None:
        """Begins to measure."""
        self.begin = time.perf_counter()
        self.before = [read_int(path / "energy_uj") or 0 for path in self.domains]
        self.sampler = _PowerSampler(self.rail) if self.rail else None
        if self.sampler:
            self.sampler.start()

    def stop(self) -> float | None:
        """Millijoules since `start`, or None where nothing was read; `seconds` says how long that was."""
        self.seconds = time.perf_counter() - self.begin
        if self.sampler:
            self.sampler.done.set()
            self.sampler.join()
            return float(np.mean(self.sampler.milliwatts)) * self.seconds if self.sampler.milliwatts else None
        after = [read_int(path / "energy_uj") or 0 for path in self.domains]
        wraps = [read_int(path / "max_energy_range_uj") for path in self.domains]
        return sum(map(rapl_uj, self.before, after, wraps)) / 1000


class _PowerSampler(threading.Thread):
    def __init__(self, rail: Rail, every_s: float = 0.02) -> None:
        super().__init__(daemon=True)
        self.rail, self.every_s, self.done = rail, every_s, threading.Event()
        self.milliwatts: list[float] = []

    def run(self) -> None:
        while not self.done.wait(self.every_s):
            if (power := self.rail.milliwatts()) is not None:
                self.milliwatts.append(power)
