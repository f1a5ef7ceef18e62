"""The state of a run on disk: what it takes to go on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitedge.errors import VitedgeError
from vitedge.files import atomic_path

FORMAT = 3


@dataclass
class State:
    """Everything that changes while a run goes on, beside the model and the optimiser.

    Attributes:
        step: optimiser steps done.
        seconds: wall time spent, earlier sittings included.
        reserve: the longest evaluation so far, in seconds: time to keep back for the last one.
        progress: share of the run that is done, 0 to 1.
        best: the best evaluation's figures, with its "step" and "score".
        weights: the model's state dict at the best evaluation, on the CPU.
        stale: evaluations since the best one.
        history: one row an evaluation.
    """

    step: int = 0
    seconds: float = 0.0
    reserve: float = 0.0
    progress: float = 0.0
    best: dict[str, float] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def save(path: Path, state: State, tensors: dict[str, Any], identity: Mapping[str, object]) -> None:
    """Writes the state, `tensors` (of model, optimiser, average) and what identifies the run."""
    with atomic_path(path) as temporary:
        torch.save({"format": FORMAT, "identity": identity, "state": vars(state), **tensors}, temporary)


def load(path: Path, identity: Mapping[str, object]) -> tuple[State, dict[str, Any]] | None:
    """The state in `path` and its tensors, or None where there is no such file.

    Raises:
        VitedgeError: for a file that can't be read, or of a run with another model, data or options.
    """
    if not path.is_file():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["format"] != FORMAT:
            raise ValueError(f"format {saved['format']}")
    except Exception as error:
        raise VitedgeError(
            f"The training state {path} can't be read.",
            "It is damaged, or another version of vitedge wrote it.",
            "Delete it and run again: the training then starts from its beginning.",
        ) from error
    differing = [k for k in identity if saved["identity"].get(k) != identity[k]]
    if differing:
        key = differing[0]
        what = "model" if key == "arch" else f"{key.replace('_', ' ')}"
        detail = "" if key == "arch" else f": {saved['identity'].get(key)} there, {identity[key]} now"
        raise VitedgeError(
            f"The training state {path} belongs to another run.",
            f"It has another {what}{detail}.",
            "Resume with the same model, data and options, or run without --resume or into another folder.",
        )
    return State(**saved["state"]), saved
