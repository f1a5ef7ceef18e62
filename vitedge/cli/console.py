"""How the command line speaks: results on stdout, everything else on stderr, plain lines without a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from vitedge.errors import VitedgeError, plain
from vitedge.reporter import Advance, Reporter

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
# Seconds between two lines of progress where there is no terminal.
_QUIET_S = 10.0


class ConsoleReporter(Reporter):
    """Lines and bars on stderr."""

    def info(self, text: str) -> None:
        err.print(escape(text), style="dim" if err.is_terminal else None)

    def warn(self, text: str) -> None:
        super().warn(text)
        err.print(f"[yellow]warning:[/] {escape(text)}")

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
    done, last = 0, time.monotonic()

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        if time.monotonic() - last > _QUIET_S:
            last = time.monotonic()
            err.print(escape(f"{title}: {done}" + (f" of {total}" if total else "")))

    yield advance


def print_error(error: VitedgeError) -> None:
    """What, why, what to do, on stderr."""
    err.print(f"[bold red]error:[/] {escape(error.what)}")
    for label, text in (("why", error.why), ("try", error.todo)):
        if text:
            err.print(f"  [bold]{label}:[/] {escape(text)}")


def print_table(table: Table) -> None:
    """A table on stdout, numbers to the right; one that is wider than the terminal goes on below itself."""
    from vitedge.tables import is_number  # which loads pydantic: the command line starts without

    for number, part in enumerate(table.fitted(out.width)):
        title = None if number else escape(plain(table.title))
        shown = RichTable(title=title, title_justify="left", title_style="bold")
        for name, right in zip(part.headings(), part.numeric(), strict=True):
            shown.add_column(escape(plain(name)), justify="right" if right else "left", overflow="fold")
        room = sum(part.widths()) + 1 + (_BAR + 3) * len(part.bars) <= out.width
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
