"""The parent's side of a row: its process, a time limit on each command, and a reason when it fails."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import vitedge
from vitedge.bench.artifact import Artifact
from vitedge.files import process_start
from vitedge.workers import JsonWorker, Message, WorkerFailed


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
        self.images_per_s = 2.0  # what `evaluate` has seen of its speed
        source = str(Path(vitedge.__file__).resolve().parent.parent)
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "vitedge.bench.child", str(os.getpid())]
        self.worker = JsonWorker(command, log, env=os.environ | {"PYTHONPATH": path})
        self.process = self.worker.process

    def __enter__(self) -> ArtifactProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Ends the process and whatever it started, and removes the exchanged files. May be called twice."""
        self.worker.kill()
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
            return self.worker.ask({"command": command} | arguments, limit)
        except WorkerFailed as failure:
            if failure.how == "late":
                hung = f"hung: no answer to '{command}' within {limit:.0f} s, so it was stopped"
                raise ArtifactFailed(hung) from None
            raise ArtifactFailed(self._reason(failure, command)) from None

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

    def _reason(self, failure: WorkerFailed, command: str) -> str:
        if failure.how == "refused":
            return failure.words
        said = self._last_words()
        words = said and "; its last words: " + said
        if failure.how == "garbage" or failure.code is None:
            return f"{failure.words} during '{command}', so it was stopped{words}"
        if failure.code < 0:
            hint = ", most likely because the machine ran out of memory" if failure.code == -signal.SIGKILL else ""
            if "bad_alloc" in said or "MemoryError" in said:
                hint = ", out of memory"
            return f"crashed during '{command}': killed by {failure.words}{hint}{words}"
        return f"ended during '{command}' with exit status {failure.code}{words}"

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
        if pid.isdigit() and process_start(int(pid)) is None:
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
