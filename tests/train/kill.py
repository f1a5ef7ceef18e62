"""Kills a training in the middle, for the tests of its resumption."""

from __future__ import annotations

from typing import Any

import pytest

from vitedge.reporter import Reporter
from vitedge.train.options import TeachingOptions
from vitedge.train.stream import Rotated
from vitedge.train.teaching import Teaching, TeachingReport


class Lines(Reporter):
    """Remembers what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)

    def of(self, start: str) -> list[str]:
        """The lines that begin so."""
        return [line for line in self.lines if line.startswith(start)]


def timeless(report: TeachingReport) -> dict[str, Any]:
    """The report without what the clock says."""
    rows = [{k: v for k, v in row.items() if k != "images_per_second"} for row in report.history]
    return {**report.to_dict(), "seconds": None, "history": rows}


def save_every_step(patch: pytest.MonkeyPatch) -> None:
    """The loop of a teaching keeps its state at each step, not each minute."""
    loop = TeachingOptions.loop
    patch.setattr(TeachingOptions, "loop", lambda self: loop(self).model_copy(update={"save_seconds": 0}))


def kill_in_loop(patch: pytest.MonkeyPatch, step: int) -> None:
    """KeyboardInterrupt where the loop has done `step` steps and computes the next loss."""
    patch.setattr(Teaching, "loss", _dying(Teaching.loss, step + 1))


def kill_in_blocks(patch: pytest.MonkeyPatch, step: int) -> None:
    """KeyboardInterrupt at step number `step` of all the blocks' steps."""
    patch.setattr(Rotated, "__call__", _dying(Rotated.__call__, step))


def _dying(function: Any, at: int) -> Any:
    calls = 0

    def called(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return function(*arguments)

    return called
