"""What the steps of one candidate after another say: the same line is told once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vitedge.reporter import Advance, Doing, Reporter


class Once(Reporter):
    """Hands progress on, and each warning once; lines about what is being done are left out."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self.reporter = reporter

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            self.reporter.warn(text)

    @contextmanager
    def busy(self, text: str) -> Iterator[Doing]:
        with self.reporter.busy(text) as doing:
            yield doing

    @contextmanager
    def progress(self, title: str, total: int | None) -> Iterator[Advance]:
        with self.reporter.progress(title, total) as advance:
            yield advance
