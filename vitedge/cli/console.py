"""How the command line speaks: results on stdout, everything else on stderr, plain lines without a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from vitedge.errors import VitedgeError
from vitedge.reporter import Advance, Reporter

# Without a terminal there is no width to keep to: tables must not be folded in logs and files.
_WIDE = 160
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDE)
err = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else _WIDE)

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


def print_table(title: str, columns: list[str], rows: list[list[Any]], note: str = "") -> None:
    """A table on stdout; None prints as a dash, numbers stand right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        numeric = any(isinstance(row[index], (int, float)) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*("-" if cell is None else escape(_cell(cell)) for cell in row))
    out.print(table)
    if note:
        out.print(escape(note))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def print_json(value: Any) -> None:
    """JSON for machines on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
