"""The parent's side of a row: its process, a time limit on each command, and a reason when it fails."""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import vitedge
from vitedge.bench.artifact import Artifact
from vitedge.workers import Message


class ArtifactFailed(Exception):
    """A row's process crashed, hung, ran out of memory, or told of an error: `reason` in words."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class ArtifactProcess:
    """A process that holds one artifact. Use it as a context manager: it is killed on the way out.

    Args:
        log: file that gets all the process prints.
        timeout_s: the longest that one command may take, unless the call says otherwise.
    """

    def __init__(self, artifact: Artifact, log: Path, *, timeout_s: float = 300.0) -> None:
        self.artifact, self.log, self.timeout_s = artifact, log, timeout_s
        self.exchange = _exchange_folder()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        child_read, self._to = os.pipe()
        self._from, child_write = os.pipe()
        self._unread = b""
        self.images_per_s = 2.0  # what `evaluate` has seen of its speed
        command = [
            sys.executable,
            "-m",
            "vitedge.bench.child",
            str(child_read),
            str(child_write),
            str(os.getpid()),
        ]
        source = str(Path(vitedge.__file__).resolve().parent.parent)
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(child_read, child_write),
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": path},
            )
        os.close(child_read)
        os.close(child_write)

    def __enter__(self) -> ArtifactProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Ends the process and whatever it started, and removes the exchanged files. May be called twice."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self.process.wait()
        for end in ("_to", "_from"):
            if getattr(self, end) >= 0:
                os.close(getattr(self, end))
                setattr(self, end, -1)
        shutil.rmtree(self.exchange, ignore_errors=True)

    def close(self) -> None:
        """Lets the artifact close its device in order, then ends the process."""
        try:
            self.ask("close", timeout_s=20)
        except ArtifactFailed:
            pass
        self.kill()

    def ask(self, command: str, *, timeout_s: float | None = None, **arguments: Any) -> Message:
        """The answer to one command. Raises ArtifactFailed with the reason; the process is then dead or
        unusable."""
        limit = timeout_s or self.timeout_s
        try:
            os.write(self._to, json.dumps({"command": command} | arguments).encode() + b"\n")
        except OSError:
            raise ArtifactFailed(self._why_dead(command)) from None
        line = self._read_line(time.monotonic() + limit)
        if line is None:
            self.kill()
            raise ArtifactFailed(f"hung: no answer to '{command}' within {limit:.0f} s, so it was stopped")
        if not line:
            raise ArtifactFailed(self._why_dead(command))
        answer: Message = json.loads(line)
        if not answer.pop("ok"):
            raise ArtifactFailed(answer["error"])
        return answer

    def open(self, **options: Any) -> Message:
        """Opens the artifact (see `child.Child.open`)."""
        a = self.artifact
        return self.ask("open", target=a.target, artifact=str(a.path), metadata=a.metadata, module=a.module, **options)

    def load(self, pixels: np.ndarray, batch: int = 1) -> Message:
        """Gives the process its images for timing, uint8 [N, H, W, 3]."""
        return self.ask("load", batch=batch, **self._put(pixels))

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        """Logits float32 [N, classes] of uint8 [N, H, W, 3]."""
        out = self.exchange / "logits.f32"
        shape: list[int] = self.ask("infer", logits=str(out), **self._put(pixels))["shape"]
        return np.fromfile(out, np.float32).reshape(shape)

    def outputs(self, pixels: np.ndarray) -> list[np.ndarray]:
        """All outputs of the artifact, float32 [N, ...], of uint8 [N, H, W, 3]: the logits first."""
        count = self.ask("outputs", folder=str(self.exchange), **self._put(pixels))["count"]
        return [np.load(self.exchange / f"{number}.npy") for number in range(count)]

    def _put(self, pixels: np.ndarray) -> Message:
        path = self.exchange / "pixels.u8"
        np.ascontiguousarray(pixels, np.uint8).tofile(path)
        return {"pixels": str(path), "shape": list(pixels.shape)}

    def _read_line(self, deadline: float) -> bytes | None:
        """One line; b"" where the process is gone; None where the time is up."""
        chunks = [self._unread]
        while b"\n" not in chunks[-1]:
            wait = deadline - time.monotonic()
            if wait <= 0 or not select.select([self._from], [], [], wait)[0]:
                return None
            chunk = os.read(self._from, 1 << 16)
            if not chunk:
                return b""
            chunks.append(chunk)
        line, _, self._unread = b"".join(chunks).partition(b"\n")
        return line

    def _why_dead(self, command: str) -> str:
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"it closed its connection during '{command}'"
        said = self._last_words()
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            hint = ", most likely because the machine ran out of memory" if -code == signal.SIGKILL else ""
            if "bad_alloc" in said or "MemoryError" in said:
                hint = ", out of memory"
            return f"crashed during '{command}': killed by {name}{hint}{said and '; its last words: ' + said}"
        return f"ended during '{command}' with exit status {code}{said and '; its last words: ' + said}"

    def _last_words(self) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-40:]
        except OSError:
            return ""
        lines = [line.strip() for line in lines if line.strip()]
        return lines[-1][:300] if lines else ""


def _exchange_folder() -> Path:
    """A new folder for images and logits. Those of harnesses that were killed are removed: they hold
    memory."""
    base = Path(_fast_folder() or tempfile.gettempdir())
    for old in base.glob("vitedge-row-*-*"):
        pid = old.name.split("-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(old, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f"vitedge-row-{os.getpid()}-", dir=base))
    # A signal may come before anybody holds what was made: then it goes when this process ends.
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _fast_folder() -> str | None:
    """Memory-backed where there is one with room: the images of every batch go through it."""
    folder = Path("/dev/shm")
    try:
        return str(folder) if os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 2**28 else None
    except OSError:
        return None
