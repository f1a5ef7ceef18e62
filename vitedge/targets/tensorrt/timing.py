"""Timing caches on disk: one for each GPU and version of TensorRT, with a note beside it that says which."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from vitedge.errors import VitedgeError
from vitedge.files import write_bytes, write_json


def default_path(gpu: str, compute_capability: str, version: str) -> Path:
    """In the user's cache folder, by what a cache is bound to."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = re.sub(r"[^a-z0-9.]+", "-", f"{gpu}-sm{compute_capability}-trt{version}".lower())
    return base / "vitedge" / "tensorrt" / f"{name}.cache"


def read_cache(path: Path, machine: dict[str, str], *, asked_for: bool) -> bytes:
    """The cache's content, or nothing where there is none yet.

    A cache of another GPU or version is an error where the user named the file, and else is begun anew.
    """
    if not path.is_file():
        return b""
    try:
        made_by = json.loads(_note(path).read_text())
    except (OSError, json.JSONDecodeError):
        made_by = {}
    differing = {k: v for k, v in made_by.items() if machine.get(k) != v}
    if not differing:
        return path.read_bytes()
    if not asked_for:
        return b""
    what = ", ".join(f"{key} {value} (here {machine.get(key)})" for key, value in differing.items())
    raise VitedgeError(
        f"The timing cache '{path}' does not fit this machine.",
        f"It was made with {what}.",
        "Name another file with --timing-cache, or leave it out: vitedge keeps one for each GPU and version.",
    )


def write_cache(path: Path, content: bytes, machine: dict[str, str]) -> None:
    """Writes the cache and its note. What can't be written is left out: the next build only takes longer."""
    try:
        write_bytes(path, content)
        write_json(_note(path), machine)
    except VitedgeError:
        return


def cache_identity(facts: dict[str, str]) -> dict[str, str]:
    """What a timing cache is bound to."""
    return {key: facts[key] for key in ("tensorrt", "gpu", "compute_capability") if key in facts}


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".json")
