"""The process that holds one artifact: uint8 images in, its outputs out, over a pipe. It ends with its parent."""

from __future__ import annotations

import multiprocessing
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.documents import Json
from vitedge.errors import VitedgeError


class WorkerLost(Exception):
    """The process ended, or did not answer in time."""


class InferenceFailed(Exception):
    """The runtime refused a batch; the process goes on."""


@dataclass(frozen=True)
class Output:
    """What an artifact says of one image: logits [classes], and attention rollout [rows, columns] where it has that."""

    logits: np.ndarray
    attention: np.ndarray | None = None


def _main(pipe: Connection, target: str, path: str, metadata: Json, threads: int | None) -> None:
    from vitedge import targets

    for name in (signal.SIGINT, signal.SIGTERM):  # the server's to handle: it drains first, then closes the pipe
        signal.signal(name, signal.SIG_IGN)
    try:
        runner = targets.get(target).open(Path(path), metadata, threads=threads)
    except Exception as error:
        known = isinstance(error, VitedgeError)
        pipe.send(error if known else VitedgeError("The artifact can't be opened.", str(error)))
        return
    pipe.send({"device": runner.device})
    attends = metadata.get("attention_output") is not None
    try:
        while True:
            shape = pipe.recv()
            pixels = np.frombuffer(pipe.recv_bytes(), np.uint8).reshape(shape)
            try:
                answer: Any = runner.outputs(pixels)[:2] if attends else (runner.infer(pixels), None)
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            pipe.send(answer)
    except (EOFError, OSError):  # the server is gone, or has closed its end
        runner.close()


class Worker:
    """One artifact, opened in a process of its own: a crash of a vendor's library ends it alone."""

    def __init__(
        self, target: str, path: Path, metadata: Json, *, threads: int | None = None, timeout_s: float = 60.0
    ) -> None:
        self.arguments = (target, str(path), metadata, threads)
        self.timeout_s = timeout_s
        self.process: BaseProcess | None = None
        self.pipe: Connection | None = None
        self.device: str | None = None

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
        self.device = answer["device"]

    def infer(self, pixels: np.ndarray) -> list[Output]:
        """What the artifact says of uint8 [N, H, W, 3]. Raises WorkerLost, after which `start` is called again, or
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
        logits, attention = answer
        maps = [None] * len(logits) if attention is None else list(attention)
        return [Output(np.asarray(row, np.float32), one) for row, one in zip(logits, maps, strict=True)]

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
