"""A subprocess that speaks JSON lines: vendors' compilers and measured artifacts alike.

One request is one line on its stdin, one answer one line on its stdout: `{"ok": true, ...}`, or `{"ok": false,
"error": ...}`. Whatever else it prints goes to a log, whose last words explain a crash. It is not trusted to answer: a
deadline holds while data flows, a line has a bound, and what is no such JSON is a failure like any other. It leads a
session of its own, so that its children end with it; it ends with us because its stdin does, and by `die_with`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from vitedge import documents
from vitedge.errors import VitedgeError

Message = dict[str, Any]
_MOST_LINE = 64 * 2**20
# How long a process that has closed its end may take to be gone.
_GONE_S = 5.0


class WorkerFailed(Exception):
    """No answer came, or none that can be used.

    Attributes:
        how: "died", "late" (it was stopped), "garbage" (so it was), or "refused": it said itself that it failed.
        words: what it said: its error, or how it ended.
    """

    def __init__(self, how: Literal["died", "late", "garbage", "refused"], words: str, code: int | None = None) -> None:
        self.how, self.words, self.code = how, words, code
        super().__init__(words)


class JsonWorker:
    """One running process. A context manager: it is killed on the way out."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Starts `command`; its stderr is added to the file `log`. Raises OSError where it can't be started."""
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
        self._unread = b""

    def __enter__(self) -> JsonWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def ask(self, message: Message, limit_s: float) -> Message:
        """The answer, without its "ok". Raises WorkerFailed; unless it "refused", the process is dead then."""
        deadline = time.monotonic() + limit_s
        try:
            self._write(documents.dump(message, indent=None).encode(), deadline)
            line = self._line(deadline)
        except TimeoutError:
            self.kill()
            raise WorkerFailed("late", f"no answer within {limit_s:.0f} s") from None
        except (BrokenPipeError, EOFError):
            raise WorkerFailed("died", *self._end()) from None
        try:
            answer = documents.parse_json(line, "the answer")
        except VitedgeError as error:
            self.kill()
            raise WorkerFailed("garbage", f"it answered what is no JSON: {error.why}") from None
        if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
            self.kill()
            raise WorkerFailed("garbage", f"it answered {documents.printable(line.decode(errors='replace'), 80)}")
        if not answer.pop("ok"):
            words = str(answer.get("error") or "").strip()
            raise WorkerFailed("refused", words or "it gave no reason")
        return answer

    def kill(self) -> None:
        """Ends the process and whatever it started. May be called twice."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _write(self, data: bytes, deadline: float) -> None:
        pipe = self.process.stdin
        assert pipe is not None
        if pipe.closed:
            raise BrokenPipeError
        os.set_blocking(pipe.fileno(), False)  # a process that reads nothing must not hold us
        while data:
            _wait(pipe, selectors.EVENT_WRITE, deadline)
            data = data[os.write(pipe.fileno(), data[: 1 << 16]) :]

    def _line(self, deadline: float) -> bytes:
        pipe = self.process.stdout
        assert pipe is not None
        chunks = [self._unread]
        size = len(self._unread)
        while b"\n" not in chunks[-1]:
            _wait(pipe, selectors.EVENT_READ, deadline)
            chunks.append(os.read(pipe.fileno(), 1 << 16))
            size += len(chunks[-1])
            if not chunks[-1]:
                raise EOFError
            if size > _MOST_LINE:
                break
        line, _, self._unread = b"".join(chunks).partition(b"\n")
        return line

    def _end(self) -> tuple[str, int | None]:
        """How the process ended, in words, and its code; None where it had to be stopped."""
        try:
            code = self.process.wait(_GONE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return "it closed its connection", None
        return ended(code), code


def _wait(pipe: IO[bytes], event: int, deadline: float) -> None:
    left = deadline - time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, event)
        if left <= 0 or not selector.select(left):
            raise TimeoutError


def ended(code: int) -> str:
    """An exit status in words: the signal's name, or the code."""
    if code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"


def call(
    command: Sequence[str], limit_s: float, *, most: int = 2**20, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Exit status and output (stdout, then what stderr added to it) of a command that may hang or flood.

    Raises WorkerFailed ("late", or "garbage" beyond `most` bytes), after it and its children were stopped; OSError
    where it can't be started.
    """
    deadline, output = time.monotonic() + limit_s, b""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=env,
    )
    assert process.stdout is not None
    try:
        while True:
            _wait(process.stdout, selectors.EVENT_READ, deadline)
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            output += chunk
            if not chunk:
                return process.wait(max(0.0, deadline - time.monotonic())), output.decode(errors="replace")
            if len(output) > most:
                raise WorkerFailed("garbage", f"it printed more than {most:,} bytes")
    except (TimeoutError, subprocess.TimeoutExpired):
        raise WorkerFailed("late", f"it did not end within {limit_s:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def die_with(parent: int) -> None:
    """Called by the process itself: it is killed when its parent is gone, also where it hangs inside a driver."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() == 1 != parent:
            os._exit(1)
