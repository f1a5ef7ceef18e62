"""What machine this is, from Linux's own files; nothing private: no host name unless it is asked for."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from vitedge import __version__
from vitedge.host.clocks import Cluster, arm_cores, cpu_clusters
from vitedge.host.files import ROOT, read
from vitedge.host.jetson import Jetson, jetson_facts
from vitedge.host.npu import Npu, npu_facts

# What decides a latency, wherever it is installed.
_LIBRARIES: tuple[str, ...] = (
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "torch",
)
_LIBRARIES += ("rknn-toolkit2", "rknn-toolkit-lite2")

@dataclass(frozen=True)
class Host:
    """A machine as the bench JSON's `host`: every figure that can't be read is None.

    Attributes:
        name: the user's own name for the machine, or None for none.
        jetson_after, npu_after: their state after the last inference, beside that before the first.
        called: digest of the name that it was reached by over SSH.
    """

    name: str | None = None
    board: str | None = None
    cpu: str | None = None
    machine: str | None = None
    cores: int | None = None
    usable_cores: int | None = None
    clusters: tuple[Cluster, ...] = ()
    governor: str | None = None
    ram_mib: int | None = None
    kernel: str | None = None
    os: str | None = None
    gpus: tuple[str, ...] = ()
    npu_driver: str | None = None
    jetson: Jetson | None = None
    npu: Npu | None = None
    python: str | None = None
    libraries: dict[str, str] = field(default_factory=dict)
    jetson_after: Jetson | None = None
    npu_after: Npu | None = None
    called: str | None = None


def facts(root: str | Path = ROOT, *, name: str | None = None) -> Host:
    """What this machine is.

    Args:
        root: where `proc` and `sys` lie; recorded trees of boards are read in the same way.
        name: the user's own name for the machine, or None for none.
    """
    root = Path(root)
    info = read(root / "proc/cpuinfo") or ""
    meminfo = re.search(r"MemTotal:\s+(\d+) kB", read(root / "proc/meminfo") or "")
    clusters = cpu_clusters(root)
    return Host(
        name=name,
        board=board(root),
        cpu=_cpu_model(info),
        machine=platform.machine() if root == ROOT else _machine(info),
        cores=len(re.findall(r"^processor\s*:", info, re.M)) or None,
        usable_cores=len(os.sched_getaffinity(0)) if root == ROOT else None,
        clusters=clusters,
        governor=", ".join(sorted({c.governor for c in clusters if c.governor})) or None,
        ram_mib=round(int(meminfo[1]) / 1024) if meminfo else None,
        kernel=read(root / "proc/sys/kernel/osrelease"),
        os=_os_name(root),
        gpus=gpus(root),
        npu_driver=read(root / "sys/kernel/debug/rknpu/version") or read(root / "proc/rknpu/version"),
        jetson=jetson_facts(root),
        npu=npu_facts(root),
        python=platform.python_version(),
        libraries=versions(),
    )


def board(root: Path) -> str | None:
    """The board's name from the device tree ("Radxa ROCK 5B"), or the PC's product name from DMI, or None."""
    for path in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if text := read(root / path):
            return text
    parts = [read(root / f"sys/class/dmi/id/{part}") for part in ("sys_vendor", "product_name")]
    return " ".join(part for part in parts if part) or None


def gpus(root: Path) -> tuple[str, ...]:
    """The names of NVIDIA's cards, by their driver's own files."""
    found = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        if name := re.search(r"^Model:\s*(.+)$", read(path) or "", re.M):
            found.append(name[1].strip())
    return tuple(found)


def versions() -> dict[str, str]:
    """Library -> version, of those installed that a latency depends on."""
    out = {"vitedge": __version__}
    for name in _LIBRARIES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return out


def slug(host: Host) -> str:
    """A file name for this host: its given name, else its board, else its processor and cores."""
    is_board = str(host.machine or "").startswith(("aarch64", "arm"))
    text = host.name or (host.board if is_board else None)
    text = text or f"{host.cpu or host.machine or 'host'}-{host.cores or 0}-cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)| cpu\b| processor\b|@.*", "", text.lower())).strip("-")[:60]


def _cpu_model(info: str) -> str | None:
    if found := re.search(r"^model name\s*:\s*(.+)$", info, re.M):
        return found[1].strip()
    names = list(arm_cores(info).values())
    return " + ".join(f"{names.count(one)}x {one}" for one in dict.fromkeys(names)) or None


def _machine(info: str) -> str | None:
    return "aarch64" if "CPU part" in info else "x86_64" if "model name" in info else None


def _os_name(root: Path) -> str | None:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', read(root / "etc/os-release") or "", re.M)
    return found[1] if found else None
