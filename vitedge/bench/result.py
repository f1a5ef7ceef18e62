"""The bench JSON: `vitedge bench --json FILE`, and `bench/<host>.json` in the bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitedge.bench import accuracy
from vitedge.bench.row import Artifact
from vitedge.errors import VitedgeError

SCHEMA = 1

_MEASURED: tuple[str, ...] = (
    "latency_ms",
    "latency_ratio",
    "warm_up",
    "device_ms",
    "cold_start_ms",
    "stages_ms",
    "sustained",
    "throughput",
)
_MEASURED += ("throughput_ips", "peak_rss_mib", "base_rss_mib", "energy_mj", "energy", "map", "delta_map")


def new_row(artifact: Artifact, facts: dict[str, Any]) -> dict[str, Any]:
    """A row whose every figure is null, for `artifact` with what is known of it beforehand (`size_mib`,
    ...)."""
    row: dict[str, Any] = {
        "target": artifact.target,
        "precision": artifact.precision,
        "platform": artifact.platform,
        "artifact": artifact.name,
        "status": "failed",
        "reason": "",
        "device": None,
        "batch": None,
        "threads": None,
    }
    row |= dict.fromkeys((*accuracy.KEYS, *_MEASURED))
    return row | dict.fromkeys(("size_mib", "macs", "params", "vendor_cycles")) | facts


def load(path: Path) -> dict[str, Any]:
    """A bench JSON. Raises VitedgeError where it is missing, no JSON, or of another schema."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise VitedgeError(f"{path} could not be read.", f"{error.strerror}.", "Check the path.") from error
    except ValueError as error:
        raise VitedgeError(f"{path} is not JSON.", f"{error}.", _TODO) from error
    if not isinstance(value, dict) or not isinstance(value.get("rows"), list):
        raise VitedgeError(f"{path} is not a bench result.", "It has no rows.", _TODO)
    if value.get("schema") != SCHEMA:
        why = f"Its schema is {value.get('schema')}; this version of vitedge knows {SCHEMA}."
        raise VitedgeError(f"{path} can't be read by this version of vitedge.", why, _TODO)
    return value


_TODO = "Pass a file that `vitedge bench --json FILE` wrote."
