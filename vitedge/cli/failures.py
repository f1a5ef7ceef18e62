"""How a command ends when it does not end well: one message and an exit status, never a raw traceback.

2: a wrong call or input. 1: a failure of something that was asked for correctly. 70: a fault of vitedge, with a report
file. 130 and 143: stopped by Ctrl-C or by SIGTERM, after what was begun was cleaned up. 141: nobody reads the output.
A command that ends well in spite of Ctrl-C, with what it had until then, says so by returning 0.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from types import FrameType

from vitedge import __version__
from vitedge.errors import EXTRAS, VitedgeError, missing_package

_STOPPED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal is gone"}

_signals: list[int] = []


def _stop(number: int, _frame: FrameType | None) -> None:
    """SIGTERM stops as Ctrl-C does, through every `finally`. The first one counts; only Ctrl-C can hurry."""
    first = not _signals
    _signals.append(number)
    if first or number == signal.SIGINT:
        raise KeyboardInterrupt


def run(command: Callable[[], object], *, debug: bool) -> None:
    """Runs `command` and exits with its status, which it may return."""
    for number in _STOPPED:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, _stop)
    for stream in (sys.stdout, sys.stderr):  # names of files may be no text of this encoding
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    status = None
    try:
        status = command()
        sys.exit(status if isinstance(status, int) else 0)
    except BaseException as caught:
        error = caught
    ended_well = status == 0 and isinstance(error, SystemExit)
    if _signals and not (ended_well and set(_signals) == {signal.SIGINT}):
        number = signal.Signals(_signals[0])
        print(f"{_STOPPED[number]}; the same command continues where it stopped", file=sys.stderr)
        _leave(128 + number)
    if isinstance(error, BrokenPipeError):
        _leave(141)
    if not isinstance(error, Exception):  # SystemExit
        raise error
    if type(error).__name__ == "NoArgsIsHelpError":  # the help was asked for by no words at all, and stands there
        sys.exit(0)
    told = error if isinstance(error, VitedgeError) else _known(error)
    if debug:
        traceback.print_exception(error)
    told = told or _unknown(error)
    from vitedge.cli.console import print_error

    print_error(told, json=any(word.partition("=")[0] == "--json" for word in sys.argv[1:]))
    sys.exit(told.exit_code)


def _leave(status: int) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    # What is still buffered for a reader that is gone would fail again at the end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(status)


def _known(error: Exception) -> VitedgeError | None:
    """The user's error for what the system refused, wherever that happened; None for a fault of ours."""
    from pathlib import Path

    from vitedge.files import write_error

    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # the parser's: a wrong call
        command = getattr(getattr(error, "ctx", None), "command_path", "vitedge")
        return VitedgeError(str(error.format_message()), "", f"`{command} --help` lists what it takes.")
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package in EXTRAS:
        return missing_package(package, EXTRAS[package], "This command")
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):
        return VitedgeError(
            "There is not enough memory.", str(error), "Close other programs, or take a smaller batch.", exit_code=1
        )
    named = getattr(error, "filename", None)
    if told := write_error(error, Path(os.fsdecode(named)) if isinstance(named, (str, bytes)) else Path("the output")):
        return told
    if isinstance(error, OSError):
        where = f"'{os.fsdecode(named)}'" if isinstance(named, (str, bytes)) else "A file or a connection"
        why = f"{error.strerror or error}."
        return VitedgeError(f"{where} failed.", why, "It may have been removed meanwhile: run it again.", exit_code=1)
    return None


def _unknown(error: Exception) -> VitedgeError:
    """The last resort: a short message, and a file with all that a report needs."""
    text = "".join(traceback.format_exception(error))
    facts = f"vitedge {__version__}, Python {platform.python_version()}, {platform.platform()}\n{sys.argv}\n\n"
    todo = "Run it again with --debug, and report what that shows."
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(prefix=f"vitedge-{time.strftime('%Y%m%d-%H%M%S')}-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(facts + text)
        todo = f"Please report it with the file {path}; --debug shows the same here."
    words = (traceback.format_exception_only(error)[-1].strip().splitlines() or [""])[0][:300]
    return VitedgeError("vitedge failed where it should not.", words, todo, exit_code=70)
