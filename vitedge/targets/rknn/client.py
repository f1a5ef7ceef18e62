"""Talks to the vendor's toolkit: starts `worker.py` in its environment, and turns its failures into our error."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from vitedge.errors import VitedgeError
from vitedge.files import clean, temporary_name
from vitedge.targets.rknn import stages
from vitedge.targets.rknn.toolchain import INSTALL_COMMAND, Toolchain, not_started, vendor_environment
from vitedge.workers import JsonWorker, Message, WorkerFailed

_MOST_LOG = 2**24
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# "E RKNN: [22:42:40.330] text", "E build: text", and the last line of a Python traceback.
_ERROR = re.compile(r"^(?:E |ERROR|[A-Za-z_.]+(?:Error|Exception):)")
# Printed in every successful build too.
_HARMLESS = ("Unkown op target: 0", "rknn-toolkit2 version:")
_FULL = ("No space left on device", "Disk quota exceeded")


class Worker:
    """One running worker. Each `request` has a time limit; the folder with its temporary files goes at `close`."""

    def __init__(self, toolchain: Toolchain, *, log: Path | None = None, space: int = 0) -> None:
        """log: file that the toolkit's output is added to; by default a temporary one.

        space: bytes that the work will need in the temporary folder. Raises VitedgeError where they aren't there, or
        where the interpreter can't be started.
        """
        root = Path(tempfile.gettempdir())
        if (free := shutil.disk_usage(root).free) < space:
            raise _no_space(f"{space / 1e6:.0f} MB are needed in '{root}', {free / 1e6:.0f} MB are free.")
        clean(root)
        self.toolchain = toolchain
        self.folder = root / temporary_name("vitedge-rknn")
        self.folder.mkdir(mode=0o700)
        self.log = (log or self.folder / "worker.log").absolute()
        self.log.touch()
        self.op, self.op_start = "", 0
        # A copy: Python puts the script's folder first on the path, and our modules would shadow packages.
        shutil.copyfile(Path(__file__).with_name("worker.py"), self.folder / "worker.py")
        command = [toolchain.python, str(self.folder / "worker.py"), str(self.log), str(os.getpid())]
        try:
            self.worker = JsonWorker(command, self.log, cwd=self.folder, env=vendor_environment())
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise not_started(toolchain.python, error) from error

    def request(self, op: str, *, limit: float = 600, **fields: object) -> Message:
        """The worker's answer. Raises VitedgeError where the toolkit failed, crashed, answered nonsense, or took over
        `limit` seconds."""
        start = self.log.stat().st_size if self.log.exists() else 0
        self.op, self.op_start = op, start
        try:
            return self.worker.ask({"op": op, **fields}, limit)
        except WorkerFailed as failed:
            words = last_words(self.text(start))
            if any(full in words or full in failed.words for full in _FULL):
                raise _no_space(words or failed.words) from None
            said = f"Its last words: {words}" if words else "It said nothing."
            if failed.how == "late":
                what = f"The RKNN compiler did not finish {op} within {limit:.0f} s."
                raise VitedgeError(what, "It was stopped.", "Give it longer with --time-limit.", exit_code=1) from None
            if failed.how == "died":
                what = f"The RKNN compiler crashed in {op} ({failed.words})."
                raise VitedgeError(what, said, self._where(), exit_code=1) from None
            error = failed.words.splitlines()[-1]
            why = words if error in words else f"{error} | {words}" if words else error
            raise VitedgeError(f"The RKNN compiler failed in {op}.", why, self._where(), exit_code=1) from None

    def doing(self) -> str:
        """What the toolkit is at, in words: ours for the request, and the stage that its log names."""
        try:
            return stages.doing(self.op, self.text(max(self.op_start, self.log.stat().st_size - stages.TAIL)))
        except (OSError, ValueError):  # the folder goes while this is asked
            return ""

    def text(self, start: int = 0) -> str:
        """What the toolkit has logged from that offset on (at most the last 16 MB), without its colours."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - _MOST_LOG))
            return _COLOUR.sub("", file.read(_MOST_LOG).decode(errors="replace"))

    def _where(self) -> str:
        # A log in the temporary folder is gone when the user reads this.
        if self.log.is_relative_to(self.folder):
            return "`vitedge doctor` shows the toolchain; a build says more in its build.log."
        return f"Its whole log: {self.log}"

    def close(self) -> None:
        """Ends the process (with its children) and removes its folder."""
        self.worker.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def last_words(text: str, count: int = 3) -> str:
    """The last error lines of the toolkit's log, or its last lines where it called none an error."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not set(line.strip()) <= set("=-*| ")]
    lines = [line for line in lines if not any(harmless in line for harmless in _HARMLESS)]
    errors = [line for line in lines if _ERROR.match(line) and "Traceback (most" not in line]
    return " | ".join(dict.fromkeys((errors or lines)[-count:]))[-1500:]


def _no_space(why: str) -> VitedgeError:
    return VitedgeError(
        "There is no space for the RKNN compiler's temporary files.",
        why,
        "Free some, or set TMPDIR to another folder.",
        exit_code=1,
    )


def selftest(toolchain: Toolchain) -> Message:
    """Builds a small model; returns the versions. Raises VitedgeError with what to do where the toolkit is broken."""
    with Worker(toolchain) as worker:
        try:
            return worker.request("selftest", limit=300)
        except VitedgeError as error:
            raise VitedgeError(
                f"The RKNN toolchain of '{toolchain.python}' is broken.",
                f"{error.what} {error.why}",
                f"Make a new one: `vitedge toolchain remove rknn`, then `{INSTALL_COMMAND}`.",
                exit_code=1,
            ) from error
