"""How the command line speaks: results on stdout, everything else on stderr, plain lines without a terminal."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box, console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from vitedge.errors import VitedgeError, plain
from vitedge.reporter import Advance, Doing, Reporter

if TYPE_CHECKING:
    from vitedge.tables import Table

# Without a terminal there is no width to keep to: tables must not be folded in logs and files.
_WIDE = 160


class Console(console.Console):
    """A terminal, or a log, that names of files and words of others can't act on."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(plain(one) if isinstance(one, str) else one for one in objects), **options)


out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDE)
err = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else _WIDE)

# Characters of the longest bar beside a figure.
_BAR = 30
# Seconds between two lines of progress where there is no terminal, and of what has no progress.
_QUIET_S, _BUSY_S = 10.0, 20.0
# Whether a result stands on stdout as JSON.
_printed: list[bool] = []


class ConsoleReporter(Reporter):
    """Lines and bars on stderr."""

    def info(self, text: str) -> None:
        err.print(escape(text), style="dim" if err.is_terminal else None)

    def warn(self, text: str) -> None:
        super().warn(text)
        err.print(f"[yellow]warning:[/] {escape(text)}")

    @contextmanager
    def busy(self, text: str) -> Iterator[Doing]:
        """Says it, and again from time to time with the minutes that have passed and what it is at."""
        self.info(text)
        done, started, doing = threading.Event(), time.monotonic(), Doing()

        def tell() -> None:
            while not done.wait(_BUSY_S):
                now = doing.ask()
                at = f", {now}" if now else ""
                err.print(escape(f"{text}: {_duration(time.monotonic() - started)} so far{at}"))

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield doing
        finally:
            done.set()
            thread.join()

    @contextmanager
    def progress(self, title: str, total: int | None) -> Iterator[Advance]:
        if not err.is_terminal:
            with _lines(title, total) as advance:
                yield advance
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=err, transient=True) as bars:
            task = bars.add_task(title, total=total)
            yield lambda n: bars.advance(task, n)


@contextmanager
def _lines(title: str, total: int | None) -> Iterator[Advance]:
    done, started = 0, time.monotonic()
    last = started

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last > _QUIET_S:
            last = now
            left = _duration((total - done) * (now - started) / done) if total and done else ""
            rest = f" of {total:,}, {left} left" if left and total else f", {_duration(now - started)} so far"
            err.print(escape(f"{title}: {done:,}{rest}"))

    yield advance


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def print_error(error: VitedgeError, *, json: bool = False) -> None:
    """What, why, what to do, on stderr; with `json` on stdout too, unless a result stands there already."""
    if json and not _printed:
        told = {"what": error.what, "why": error.why, "try": error.todo, "exit_code": error.exit_code}
        print_json({"error": told})
    err.print(f"[bold red]error:[/] {escape(error.what)}")
    for label, text in (("why", error.why), ("try", error.todo)):
        if text:
            err.print(f"  [bold]{label}:[/] {escape(text)}")


def print_table(table: Table) -> None:
    """A table on stdout, numbers to the right; one that is wider than the terminal goes on below itself."""
    from vitedge.tables import is_number  # which loads pydantic: the command line starts without

    for number, part in enumerate(table.fitted(out.width)):
        out.print()
        if not number:
            out.print(f"[bold]{escape(plain(table.title))}[/]")
        shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
        for name, right in zip(part.headings(), part.numeric(), strict=True):
            shown.add_column(escape(plain(name)), justify="right" if right else "left", overflow="fold")
        room = sum(part.widths()) + (_BAR + 2) * len(part.bars) <= out.width
        drawn = part.bars if room else ()
        for _ in drawn:
            shown.add_column("")
        largest = {name: max(filter(is_number, part.column(name)), default=0) for name in drawn}
        for row, cells in zip(part.texts(), part.rows, strict=True):
            of = dict(zip(part.columns, cells, strict=True))
            bars = ["#" * _bar(of[name], largest[name]) for name in drawn]
            shown.add_row(*(escape(plain(cell)) for cell in row), *bars)
        out.print(shown)
    if table.note:
        out.print(escape(table.note))


def _bar(value: Any, largest: float) -> int:
    return round(_BAR * value / largest) if isinstance(value, (int, float)) and 0 < value <= largest else 0


def print_json(value: Any) -> None:
    """JSON for machines on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
    _printed.append(True)
