"""One package a target: its probe, rewrites, build and runner. A target's name is known only in here."""

from __future__ import annotations

import importlib

from vitedge.errors import VitedgeError
from vitedge.targets.base import Target

# Name -> module that holds a `TARGET`. A new target is one package and one line here.
_TARGETS = {
    "onnxruntime": "vitedge.targets.onnxruntime",
    "openvino": "vitedge.targets.openvino",
    "tensorrt": "vitedge.targets.tensorrt",
    "rknn": "vitedge.targets.rknn",
}


# What float graphs are run with as they were exported, where nothing else is compared: it installs everywhere.
REFERENCE = "onnxruntime"


def names() -> list[str]:
    """The names of all targets, in the order in which tables show them."""
    return list(_TARGETS)


def get(name: str) -> Target:
    """The target of that name. Imports its package, never its vendor's library. Raises VitedgeError."""
    if name not in _TARGETS:
        raise VitedgeError(f"There is no target '{name}'.", "", f"Choose one of: {', '.join(_TARGETS)}.")
    return importlib.import_module(_TARGETS[name]).TARGET
