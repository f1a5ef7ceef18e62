"""On a board: rknn-toolkit-lite2's runtime. Needs neither torch nor the toolkit; not yet run on hardware.

Written to the runtime's documented interface: `RKNNLite()`, `load_rknn(path) -> 0 | -1`,
`init_runtime(core_mask=...) -> 0 | -1`, `inference(inputs, data_format=...) -> list | None`, `get_sdk_version()`,
`release()`. It logs its errors and raises nothing: a return of -1 or None is the only sign.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.errors import VitedgeError
from vitedge.targets.base import Probe, Runner
from vitedge.targets.rknn.versions import library_version, misfits

COMPATIBLE = Path("/proc/device-tree/compatible")
DEVICES = ("/dev/rknpu", "/dev/dri/renderD129", "/dev/dri/renderD128")
# Chips that are told apart by their device tree, and run each other's artifacts or not.
CHIPS = ("rk3588", "rk3576", "rk3568", "rk3566", "rk3562")
# How many NPU cores a chip has; `core_mask` errs where there is one.
CORES = {"rk3588": 3, "rk3576": 2}
# Names and values of RKNNLite.NPU_CORE_*.
MASKS = {"auto": 0, "0": 1, "1": 2, "2": 4, "0_1": 3, "0_1_2": 7, "all": 0xFFFF}
# Where the driver says its version: the first is readable for root alone.
DRIVER = (Path("/sys/kernel/debug/rknpu/version"), Path("/sys/module/rknpu/version"))
# Where the vendor's runtime looks for its library (rknn-toolkit-lite2 2.5.0), and where that is published.
LIBRARIES = ("/usr/lib/librknnrt.so", "/usr/lib64/librknnrt.so", "/usr/lib/aarch64-linux-gnu/librknnrt.so")
LIBRARY = "https://github.com/airockchip/rknn-toolkit2/tree/master/rknpu2/runtime/Linux/librknn_api/aarch64"


def platform_here(compatible: Path = COMPATIBLE) -> str | None:
    """The Rockchip chip of this machine by its device tree, or None."""
    try:
        names = compatible.read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    for chip in CHIPS:
        # "rockchip,rk3588s" is an rk3588 with fewer pins.
        if any(re.fullmatch(rf"rockchip,{chip}[a-z]?", name) for name in names):
            return chip
    return None


def import_lite() -> Any:
    """The class RKNNLite. Raises VitedgeError with where to get it."""
    try:
        from rknnlite.api import RKNNLite  # type: ignore[import-not-found]
    except ImportError as error:
        raise VitedgeError(
            "The NPU's Python runtime (rknn-toolkit-lite2) is not installed.",
            f"{error}.",
            "Install it: pip install rknn-toolkit-lite2 (aarch64, CPython 3.7 to 3.12).",
            exit_code=1,
        ) from error
    return RKNNLite


def probe(target: str, chip: str) -> Probe:
    """What the board has: runtime, driver, access to the NPU."""
    versions = {"chip": chip, "kernel": platform.release()}
    runtime = next((found for path in LIBRARIES if (found := library_version(Path(path)))), "")
    if runtime:
        versions["runtime"] = runtime
    if driver := driver_version():
        versions["driver"] = driver
    try:
        import_lite()
        versions["rknn-toolkit-lite2"] = importlib.metadata.version("rknn-toolkit-lite2")
    except VitedgeError as error:
        return Probe(target, False, False, versions, f"{error.what} {error.why}", error.todo, "npu")
    except importlib.metadata.PackageNotFoundError:
        pass
    if trouble := device_trouble() or library_trouble():
        return Probe(target, False, False, versions, trouble[0], trouble[1], "npu")
    return Probe(target, False, True, versions, device="npu", notes=tuple(misfits(versions)))


def driver_version(paths: tuple[Path, ...] = DRIVER) -> str:
    """The kernel driver's version, or an empty string."""
    for path in paths:
        try:
            return path.read_text().strip().removeprefix("RKNPU driver:").strip()
        except OSError:
            continue
    return ""


def device_trouble(devices: tuple[str, ...] = DEVICES) -> tuple[str, str] | None:
    """Why the NPU's device can't be used and what fixes it, or None where it can."""
    there = [d for d in devices if os.path.exists(d)]
    if not there:
        return (
            f"There is no NPU device ({', '.join(devices)}).",
            "Use a kernel with the rknpu driver, and enable the NPU in its device tree.",
        )
    if not any(os.access(d, os.R_OK | os.W_OK) for d in there):
        return (
            f"{there[0]} can't be opened by this user.",
            "Join its group (`sudo usermod -aG render,video $USER`, then log in again), or run as root.",
        )
    return None


def library_trouble(paths: tuple[str, ...] = LIBRARIES) -> tuple[str, str] | None:
    """Why the NPU's library can't be used and what fixes it, or None where it is there: no package brings it."""
    if any(os.path.exists(path) for path in paths):
        return None
    return (
        "The NPU's library librknnrt.so is missing.",
        f"Download the one of your toolkit's version from {LIBRARY} and copy it to /usr/lib.",
    )


class BoardRunner(Runner):
    """One runtime context, or one a core where `npu_cores` is "all": more contexts are what adds throughput, one
    image gains little from three cores."""

    device = "npu"
    batch: int | None = 1

    def __init__(self, artifact: Path, metadata: Mapping[str, Any], chip: str) -> None:
        """Raises VitedgeError for another chip's artifact, another runtime's version, and a runtime that refuses."""
        if metadata["platform"] != chip and {metadata["platform"], chip} != {"rk3566", "rk3568"}:
            raise VitedgeError(
                f"'{artifact.name}' was built for {metadata['platform']}, but this board is an {chip}.",
                "A .rknn holds one chip's instructions.",
                f"Build it with `vitedge build --target rknn --platform {chip}`.",
            )
        if trouble := device_trouble() or library_trouble():
            raise VitedgeError("The NPU can't be used.", *trouble, exit_code=1)
        lite = import_lite()
        wanted = metadata.get("npu_cores", "auto")
        count = CORES.get(chip, 1)
        if wanted == "all" and count > 1:
            masks: list[int | None] = [1 << core for core in range(count)]
        else:
            masks = [MASKS[wanted] if count > 1 else None]
        self.contexts: list[Any] = []
        try:
            for mask in masks:
                self.contexts.append(_context(lite, artifact, metadata, mask))
        except BaseException:
            self.close()
            raise
        self.versions = {"runtime": str(self.contexts[0].get_sdk_version() or ""), "driver": driver_version()}
        self._pool = ThreadPoolExecutor(len(self.contexts))

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] -> float32 logits [N, classes]; several contexts share the images."""
        count = len(self.contexts)
        shares = [range(start, len(pixels), count) for start in range(count)]
        parts = list(self._pool.map(lambda c, share: [_one(c, pixels[i]) for i in share], self.contexts, shares))
        logits: list[np.ndarray] = [np.empty(0)] * len(pixels)
        for share, part in zip(shares, parts, strict=True):
            for i, row in zip(share, part, strict=True):
                logits[i] = row
        return np.stack(logits)

    def outputs(self, pixels: np.ndarray) -> list[np.ndarray]:
        """All outputs, float32: the logits [N, classes], then the taps, a row an image; on the first context."""
        parts = zip(*(_outputs(self.contexts[0], image) for image in pixels), strict=True)
        return [np.stack(rows) for rows in parts]

    def close(self) -> None:
        """Releases the contexts."""
        if pool := getattr(self, "_pool", None):
            pool.shutdown()
        for context in self.contexts:
            context.release()
        self.contexts = []


def _context(lite: Any, artifact: Path, metadata: Mapping[str, Any], mask: int | None) -> Any:
    context = lite()
    if context.load_rknn(str(artifact)) != 0:
        context.release()
        raise VitedgeError(
            f"The NPU's runtime can't load '{artifact}'.",
            f"The file is damaged, or the runtime is older than the toolkit that built it ({metadata['toolkit']}).",
            "Install the librknnrt.so and rknn-toolkit-lite2 of that version, or build it with "
            "`vitedge toolchain install rknn --version VERSION`.",
            exit_code=1,
        )
    started = context.init_runtime() if mask is None else context.init_runtime(core_mask=mask)
    if started != 0:
        context.release()
        raise VitedgeError(
            "The NPU's runtime did not start.",
            f"init_runtime returned {started}; its log above says why. The artifact is of toolkit "
            f"{metadata['toolkit']}, the driver is {driver_version() or 'of unknown version'}.",
            "Bring librknnrt.so, the driver and the artifact to versions that fit each other.",
            exit_code=1,
        )
    return context


def _one(context: Any, image: np.ndarray) -> np.ndarray:
    return _outputs(context, image)[0]


def _outputs(context: Any, image: np.ndarray) -> list[np.ndarray]:
    result = context.inference(inputs=[np.ascontiguousarray(image[None])], data_format=["nhwc"])
    if result is None:
        raise VitedgeError(
            "The NPU failed while it ran.", "Its runtime returned nothing.", "See its log above.", exit_code=1
        )
    return [np.asarray(one, np.float32).reshape(-1) for one in result]
