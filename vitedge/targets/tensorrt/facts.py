"""What an engine is bound to: the machine's facts, and whether an engine fits them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitedge.errors import VitedgeError
from vitedge.host.jetson import jetson_facts
from vitedge.targets.tensorrt.api import version_tuple


def machine_facts(trt: Any) -> dict[str, str]:
    """TensorRT's version, the GPU's name and compute capability, CUDA, and on a Jetson JetPack and its mode."""
    from vitedge.targets.tensorrt import cuda

    return {"tensorrt": trt.__version__, **cuda.gpu_facts(cuda.load()), **board_facts()}


def board_facts() -> dict[str, str]:
    """On a Jetson its L4T, JetPack and power mode; empty elsewhere."""
    jetson = jetson_facts()
    known = (("l4t", jetson.l4t), ("jetpack", jetson.jetpack), ("power_mode", jetson.power_mode)) if jetson else ()
    return {key: value for key, value in known if value}


def refuse_misfit(metadata: Mapping[str, Any], machine: dict[str, str]) -> None:
    """Raises VitedgeError where an engine with this metadata can't run on this machine, with the reason."""
    made = metadata.get("machine", {})
    reasons = []
    ours, theirs = machine["tensorrt"], str(made.get("tensorrt"))
    if metadata.get("version_compatible"):
        # Forward only: such an engine runs on its own version and on later ones.
        if version_tuple(theirs) > version_tuple(ours):
            reasons.append(f"it was built with TensorRT {theirs}, here is the older {ours}")
    elif theirs != ours:
        reasons.append(f"it was built with TensorRT {theirs}, here is {ours}")
    for key, what in (("compute_capability", "compute capability"), ("gpu", "GPU")):
        if key in made and made[key] != machine.get(key) and not metadata.get("hardware_compatible"):
            reasons.append(f"it was built for {what} {made[key]}, here is {machine.get(key)}")
    if reasons:
        why = "; ".join(reasons)
        raise VitedgeError(
            "This TensorRT engine does not fit this machine.",
            f"{why[0].upper()}{why[1:]}. Engines hold machine code for one GPU.",
            "Build it here: vitedge build --target tensorrt (without torch; minutes on an Orin).",
        )


def read_plan(path: Path, metadata: Mapping[str, Any]) -> bytes:
    """The engine's bytes. Raises VitedgeError where the file is missing or not whole."""
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise VitedgeError(f"The engine '{path}' can't be read.", str(error), "Build it again.") from error
    size = metadata.get("engine_bytes")
    if size is not None and len(plan) != size:
        raise VitedgeError(
            f"The engine '{path}' is truncated.",
            f"It has {len(plan)} bytes, and {size} were written.",
            "Copy it again, or build it here: vitedge build --target tensorrt.",
        )
    digest = metadata.get("engine_sha256")
    if digest is not None and hashlib.sha256(plan).hexdigest() != digest:
        raise VitedgeError(
            f"The engine '{path}' is damaged.",
            "Its content is not what was written (sha256).",
            "Copy it again, or build it here: vitedge build --target tensorrt.",
        )
    return plan
