"""Energy of an inference: the rail's whole draw while the model runs back to back, idle share included, which is what
a battery pays."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitedge.bench.latency import Infer
from vitedge.host.power import EnergyMeter


@dataclass(frozen=True)
class Energy:
    """What the rail drew while so many images were inferred."""

    mj_per_image: float
    watts: float
    rail: str
    images: int


def measure(infer: Infer, inputs: Sequence[np.ndarray], seconds: float, root: Path = Path("/")) -> Energy | None:
    """The energy over `seconds` of inferences, or None where no rail is read."""
    meter = EnergyMeter(root)
    if not meter.readable:
        return None
    meter.start()
    begin, images = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds or not images:
        pixels = inputs[images % len(inputs)]
        infer(pixels)
        images += len(pixels)
    millijoules = meter.stop()
    if millijoules is None:
        return None
    return Energy(millijoules / images, millijoules / 1000 / meter.seconds, meter.name, images)
