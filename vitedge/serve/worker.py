"""The process that holds one artifact: uint8 images in, float32 logits out, over a pipe. It ends with its parent."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.errors import VitedgeError


class WorkerLost(Exception):
    """The process ended, or did not answer in time."""


class InferenceFailed(Exception):
    """The runtime refused a batch; the process goes on."""


def _main(pipe: Connection, target: str, path: str, metadata: dict[str, Any], threads: int | None) -> None:
    from vitedge import targets

    for name in (signal.SIGINT, signal.SIGTERM):  # the server's to handle: it drains first, then closes the pipe
        signal.signal(name, signal.SIG_IGN)
    try:
        runner = targets.get(target).open(Path(path), metadata, threads=threads)
    except Exception as error:
        known = isinstance(error, VitedgeError)
        pipe.send(error if known else VitedgeError("The artifact can't be opened.", str(error)))
        return
    pipe.send({"device": runner.device, "batch": runner.batch})
    try:
        while True:
            shape = pipe.recv()
            pixels = np.frombuffer(pipe.recv_bytes(), np.uint8).reshape(shape)
            try:
                answer: Any = np.ascontiguousarray(runner.infer(pixels), np.float32)
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            pipe.send(answer)
    except (EOFError, OSError):  # the server is gone, or has closed its end
        runner.close()


class Worker:
    """One artifact, opened in a process of its own: a crash of a vendor's library ends it alone."""

    def __init__(
        self, target: str, path: Path, metadata: dict[str, Any], *, threads: int | None = None, timeout_s: float = 60.0
    ) -> None:
        self.arguments = (target, str(path), metadata, threads)
        self.timeout_s = timeout_s
        self.process: BaseProcess | None = None
        self.pipe: Connection | None = None
        self.facts: dict[str, Any] = {}

    def start(self) -> None:
        """Opens the artifact. Raises VitedgeError where it can't be opened."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_main, args=(theirs, *self.arguments), daemon=True)
        self.process.start()
        theirs.close()
        try:
            answer = self._receive(max(self.timeout_s, 120.0))
        except WorkerLost as error:
            raise VitedgeError("The artifact's process ended while it was opened.", str(error), exit_code=1) from error
        if isinstance(answer, VitedgeError):
            self.stop()
            raise answer
        self.facts = answer

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] -> float32 logits [N, classes]. Raises WorkerLost, after which `start` is called again, or
        InferenceFailed.
        """
        if self.pipe is None:
            raise WorkerLost("it is not running")
        try:
            self.pipe.send(pixels.shape)
            self.pipe.send_bytes(np.ascontiguousarray(pixels).data.cast("B"))
        except OSError as error:
            self.stop()
            raise WorkerLost(str(error)) from error
        answer = self._receive(self.timeout_s)
        if isinstance(answer, str):
            raise InferenceFailed(answer)
        return answer

    def _receive(self, timeout_s: float) -> Any:
        assert self.pipe is not None
        try:
            if self.pipe.poll(timeout_s):
                return self.pipe.recv()
            reason = f"it did not answer within {timeout_s:.0f} s"
        except (EOFError, OSError):
            reason = "it ended unexpectedly"
        self.stop()
        raise WorkerLost(reason)

    def stop(self) -> None:
        """Ends the process."""
        pipe, process, self.pipe, self.process = self.pipe, self.process, None, None
        if pipe is not None:
            pipe.close()
        if process is not None:
            process.join(2)
            if process.is_alive():
                process.kill()
                process.join()
