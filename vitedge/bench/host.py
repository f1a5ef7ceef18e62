"""What machine this is, from Linux's own files; nothing private: no host name unless it is asked for."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from vitedge import __version__

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

# ARM's MIDR part numbers of the cores in edge boards (Linux, arch/arm64/include/asm/cputype.h).
_ARM_PARTS = {0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57"}
_ARM_PARTS |= {0xD08: "Cortex-A72", 0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76"}
_ARM_PARTS |= {0xD0C: "Neoverse-N1", 0xD41: "Cortex-A78", 0xD42: "Cortex-A78AE", 0xD46: "Cortex-A510"}


def read(path: Path) -> str | None:
    """The stripped text of a file of /sys or /proc, or None where it is missing or refused."""
    try:
        return path.read_text(errors="replace").strip("\0 \n\t")
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """The number that such a file holds, or None."""
    text = read(path)
    return int(text) if text and re.fullmatch(r"-?\d+", text) else None


def facts(root: str | Path = "/", *, name: str | None = None) -> dict[str, Any]:
    """The host as the bench JSON's `host`: every figure that can't be read is None.

    Args:
        root: where `proc` and `sys` lie; recorded trees of boards are read in the same way.
        name: the user's own name for the machine, or None for none.
    """
    root = Path(root)
    info = read(root / "proc/cpuinfo") or ""
    meminfo = re.search(r"MemTotal:\s+(\d+) kB", read(root / "proc/meminfo") or "")
    clusters = cpu_clusters(root)
    return {
        "name": name,
        "board": board(root),
        "cpu": _cpu_model(info),
        "machine": platform.machine() if root == Path("/") else _machine(info),
        "cores": len(re.findall(r"^processor\s*:", info, re.M)) or None,
        "usable_cores": len(os.sched_getaffinity(0)) if root == Path("/") else None,
        "clusters": clusters,
        "governor": ", ".join(sorted({c["governor"] for c in clusters if c["governor"]})) or None,
        "ram_mib": round(int(meminfo[1]) / 1024) if meminfo else None,
        "kernel": _kernel(root),
        "os": _os_name(root),
        "gpus": gpus(root),
        "npu_driver": read(root / "sys/kernel/debug/rknpu/version") or read(root / "proc/rknpu/version"),
        "jetson": jetson(root),
        "npu": npu(root),
        "python": platform.python_version(),
        "libraries": versions(),
    }


def board(root: Path) -> str | None:
    """The board's name from the device tree ("Radxa ROCK 5B"), or the PC's product name from DMI, or None."""
    for path in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if text := read(root / path):
            return text
    parts = [read(root / f"sys/class/dmi/id/{part}") for part in ("sys_vendor", "product_name")]
    return " ".join(part for part in parts if part) or None


def gpus(root: Path) -> list[str]:
    """The names of NVIDIA's cards, by their driver's own files."""
    found = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        if name := re.search(r"^Model:\s*(.+)$", read(path) or "", re.M):
            found.append(name[1].strip())
    return found


def cpu_clusters(root: Path) -> list[dict[str, Any]]:
    """The groups of cores that share a clock: {"cpus", "core", "min_mhz", "max_mhz", "now_mhz",
    "governor"}."""
    out = []
    cores = _arm_cores(read(root / "proc/cpuinfo") or "")
    for policy in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"), key=_number):
        cpus = read(policy / "affected_cpus") or read(policy / "related_cpus") or str(_number(policy))
        clocks = {
            f"{short}_mhz": None if (khz := read_int(policy / f"{long}_freq")) is None else round(khz / 1000)
            for short, long in (("min", "scaling_min"), ("max", "scaling_max"), ("now", "scaling_cur"))
        }
        core = cores.get(int(cpus.split()[0])) if cpus.split() else None
        out.append({"cpus": cpus, "core": core} | clocks | {"governor": read(policy / "scaling_governor")})
    return out


def temperatures(root: Path = Path("/")) -> dict[str, float]:
    """Thermal zone -> degrees Celsius, of the zones that can be read."""
    out = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*"), key=_number):
        milli = read_int(zone / "temp")
        if milli is not None and -40_000 < milli < 200_000:  # an unused sensor reads as -256 degrees and the like
            out[read(zone / "type") or zone.name] = milli / 1000
    return out


def clocks_mhz(root: Path = Path("/")) -> list[int]:
    """The present clock of each group of cores, in MHz; empty where the kernel doesn't tell."""
    return [cluster["now_mhz"] for cluster in cpu_clusters(root) if cluster["now_mhz"] is not None]


def versions() -> dict[str, str]:
    """Library -> version, of those installed that a latency depends on."""
    out = {"vitedge": __version__}
    for name in _LIBRARIES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return out


def slug(host: dict[str, Any]) -> str:
    """A file name for this host: its given name, else its board, else its processor and cores."""
    text = host.get("name") or (host.get("board") if _is_board(host) else None)
    text = text or f"{host.get('cpu') or host.get('machine') or 'host'}-{host.get('cores') or 0}-cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)| cpu\b| processor\b|@.*", "", text.lower())).strip("-")[:60]


def _is_board(host: dict[str, Any]) -> bool:
    return str(host.get("machine", "")).startswith(("aarch64", "arm"))


def _number(path: Path) -> int:
    digits = re.sub(r"\D", "", path.name)
    return int(digits) if digits else 0


def _cpu_model(info: str) -> str | None:
    if found := re.search(r"^model name\s*:\s*(.+)$", info, re.M):
        return found[1].strip()
    names = list(_arm_cores(info).values())
    return " + ".join(f"{names.count(one)}x {one}" for one in dict.fromkeys(names)) or None


def _arm_cores(info: str) -> dict[int, str]:
    """Core number -> ARM's name of it, from /proc/cpuinfo."""
    found = re.findall(r"^processor\s*:\s*(\d+)$(?:.+?)^CPU part\s*:\s*(0x[0-9a-f]+)$", info, re.M | re.S)
    return {int(cpu): _ARM_PARTS.get(int(part, 16), f"ARM part {part}") for cpu, part in found}


def _machine(info: str) -> str | None:
    return "aarch64" if "CPU part" in info else "x86_64" if "model name" in info else None


def _kernel(root: Path) -> str | None:
    return read(root / "proc/sys/kernel/osrelease")


def _os_name(root: Path) -> str | None:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', read(root / "etc/os-release") or "", re.M)
    return found[1] if found else None


def jetson(root: Path = Path("/")) -> dict[str, Any] | None:
    """What a Jetson says of itself (`host_jetson.jetson_facts`), or None on anything else."""
    from vitedge.bench.host_jetson import jetson_facts  # which reads files by means of this module

    return jetson_facts(root)


def npu(root: Path = Path("/")) -> dict[str, Any] | None:
    """What the kernel says of a Rockchip's NPU (`host_npu.npu_facts`), or None on anything else."""
    from vitedge.bench.host_npu import npu_facts  # which reads files by means of this module

    return npu_facts(root)
