"""What a step says while it works. The API is silent by default; the command line shows it on stderr."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


class Doing:
    """What a long work is at: the work sets `ask`, whoever shows the work calls it, perhaps from another thread."""

    def __init__(self) -> None:
        self.ask: Callable[[], str] = str


class Reporter:
    """Says nothing, and remembers the warnings, so that a caller of the API can read them."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def info(self, text: str) -> None:
        """A line about what is being done."""

    def warn(self, text: str) -> None:
        """A line that the user should read."""
        self.warnings.append(text)

    @contextmanager
    def busy(self, text: str) -> Iterator[Doing]:
        """What the block is doing, for as long as that takes; for work that can't be counted. The block may say more by
        setting what it gets."""
        self.info(text)
        yield Doing()

    @contextmanager
    def progress(self, title: str, total: int | None) -> Iterator[Advance]:
        """A bar of `total` units; the block calls `advance(n)`."""
        yield lambda n: None


def scaled(advance: Advance, work: int, total: int) -> Advance:
    """An `advance` that is told of `work` units in all, and shows them as `total` (images, say)."""
    done = shown = 0

    def tell(n: int) -> None:
        nonlocal done, shown
        done += n
        now = min(total, done * total // max(work, 1))
        if now > shown:
            advance(now - shown)
            shown = now

    return tell


class WarningReporter(Reporter):
    """Says nothing but warnings, as Python's own: what a caller of the API gets who gives no reporter."""

    def warn(self, text: str) -> None:
        super().warn(text)
        warnings.warn(text, stacklevel=2)
