"""Where latency models are kept: the user's cache, one file for each target, precision, machine and width. No torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pydantic import JsonValue

from vitedge import targets
from vitedge.cost.model import LatencyModel, load
from vitedge.errors import VitedgeError
from vitedge.files import write_json
from vitedge.host import facts as host
from vitedge.processors import checked_threads


def folder() -> Path:
    """Where this user's latency models lie."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "vitedge" / "latency"


def path(target: str, precision: str, platform: str | None, width: int, threads: int | None) -> Path:
    """The file of a model: kernels of another width run at another speed."""
    machine = f"threads{checked_threads(threads)}", host.slug(host.facts())
    parts = [target, precision, platform, f"width{width}", *machine]
    return folder() / f"{re.sub(r'[^a-z0-9.-]+', '-', '-'.join(filter(None, parts)).lower())}.json"


def keep(model: LatencyModel, width: int) -> Path:
    """Writes the model into the user's cache; returns the file."""
    to = path(model.target, model.precision, model.platform, width, model.threads)
    to.parent.mkdir(parents=True, exist_ok=True)
    write_json(to, model.to_json())
    return to


def find(
    target: str, precision: str, platform: str | None, width: int, threads: int | None = None
) -> LatencyModel | None:
    """What was fitted for models of this width on this machine, else what the target knows of published figures.

    None where there is neither; a file that can't be read counts as none.
    """
    file = path(target, precision, platform, width, threads)
    if file.is_file():
        try:
            return load(file)
        except VitedgeError:
            return None
    return targets.get(target).latency_model(precision, platform)


def host_facts() -> dict[str, JsonValue]:
    """What of this machine a latency depends on."""
    known = host.facts()
    return {"cpu": known.cpu, "cores": known.usable_cores, "board": known.board, "machine": known.machine}
