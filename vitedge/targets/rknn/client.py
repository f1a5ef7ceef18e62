"""Talks to the vendor's toolkit: starts `worker.py` in its environment, and turns its failures into our error."""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from vitedge.errors import VitedgeError
from vitedge.targets.rknn.toolchain import INSTALL_COMMAND, Toolchain

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

        space: bytes that the work will need in the temporary folder. Raises VitedgeError where they aren't there.
        """
        root = Path(tempfile.gettempdir())
        if (free := shutil.disk_usage(root).free) < space:
            raise _no_space(f"{space / 1e6:.0f} MB are needed in '{root}', {free / 1e6:.0f} MB are free.")
        self.toolchain = toolchain
        self.folder = Path(tempfile.mkdtemp(prefix="vitedge-rknn-"))
        self.log = (log or self.folder / "worker.log").absolute()
        self.log.touch()
        script = Path(__file__).with_name("worker.py")
        # The user's own packages and settings stay out of the vendor's environment.
        drop = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        environment = {k: v for k, v in os.environ.items() if k not in drop}
        # A copy: Python puts the script's folder first on the path, and our modules would shadow packages.
        shutil.copyfile(script, self.folder / "worker.py")
        self.process = subprocess.Popen(
            [toolchain.python, str(self.folder / "worker.py"), str(self.log)],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._buffer = b""

    def request(self, op: str, *, limit: float = 600, **fields: Any) -> dict[str, Any]:
        """The worker's answer. Raises VitedgeError where the toolkit failed, crashed, or took over `limit` seconds."""
        start = self.log.stat().st_size if self.log.exists() else 0
        line = json.dumps({"op": op, **fields}) + "\n"
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()
            answer = self._answer(op, limit)
        except (BrokenPipeError, EOFError):
            raise self._crashed(op, start) from None
        if not answer["ok"]:
            error = answer["error"].strip().splitlines()[-1]
            words = last_words(self.text(start))
            if any(full in words or full in answer["error"] for full in _FULL):
                raise _no_space(words)
            detail = words if error in words else f"{error} | {words}" if words else error
            raise VitedgeError(f"The RKNN compiler failed in {op}.", detail, self._where(), exit_code=1)
        return answer

    def text(self, start: int = 0) -> str:
        """What the toolkit has logged from that offset on, without its colours."""
        with self.log.open("rb") as file:
            file.seek(start)
            return _COLOUR.sub("", file.read().decode(errors="replace"))

    def _answer(self, op: str, limit: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        deadline = time.monotonic() + limit
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.close()
                    raise VitedgeError(
                        f"The RKNN compiler did not finish {op} within {limit:.0f} s.",
                        "It was stopped.",
                        "Give it longer with --time-limit.",
                        exit_code=1,
                    )
                piece = os.read(self.process.stdout.fileno(), 1 << 16)
                if not piece:
                    raise EOFError
                self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def _crashed(self, op: str, start: int) -> VitedgeError:
        code = self.process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        words = last_words(self.text(start))
        if any(full in words for full in _FULL):
            return _no_space(words)
        return VitedgeError(
            f"The RKNN compiler crashed in {op} ({name}).",
            f"Its last words: {words}" if words else "It said nothing.",
            self._where(),
            exit_code=1,
        )

    def _where(self) -> str:
        # A log in the temporary folder is gone when the user reads this.
        if self.log.is_relative_to(self.folder):
            return "`vitedge doctor` shows the toolchain; a build says more in its build.log."
        return f"Its whole log: {self.log}"

    def close(self) -> None:
        """Ends the process (with its children) and removes its folder."""
        if self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
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


def selftest(toolchain: Toolchain) -> dict[str, Any]:
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
