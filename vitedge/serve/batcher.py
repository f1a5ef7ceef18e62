"""Micro-batching: images of several requests go through the artifact together.

One thread takes images from a bounded queue and waits a few milliseconds for more. A worker that is lost is started
again and its batch is run again, so that no request is lost; a future is answered once, so none is answered twice.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from vitedge.errors import VitedgeError
from vitedge.serve.worker import Output, Worker, WorkerLost

# How often a batch is tried whose worker is lost: the third loss is the batch's own doing.
_ATTEMPTS = 3


class Busy(Exception):
    """The queue is full."""


@dataclass
class Waiting:
    """One image [H, W, 3] that waits; its future gets (what is said of it, seconds waited, seconds of inference)."""

    pixels: np.ndarray
    future: Future[tuple[Output, float, float]] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """A worker behind a bounded queue."""

    def __init__(
        self,
        worker: Worker,
        *,
        max_batch: int,
        max_wait_ms: float,
        limit: int,
        observe: Callable[[int, float], None] = lambda images, seconds: None,
        restarted: Callable[[], None] = lambda: None,
    ) -> None:
        """observe: told the size and the seconds of each batch; restarted: called when the worker was started again."""
        self.worker, self.max_batch, self.max_wait_s, self.limit = worker, max_batch, max_wait_ms / 1000, limit
        self.observe, self.restarted = observe, restarted
        self.queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self.lock = threading.Lock()
        self.count, self.closing, self.healthy = 0, False, True
        self.thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self.thread.start()

    @property
    def waiting(self) -> int:
        """Images in the queue or in the worker."""
        return self.count

    def submit(self, images: list[np.ndarray]) -> list[Future[tuple[Output, float, float]]]:
        """Futures of these images, all or none of them taken. Raises Busy where the queue has no room for all."""
        with self.lock:
            if self.closing or (self.count + len(images) > self.limit and self.count):
                raise Busy
            self.count += len(images)
        entries = [Waiting(pixels) for pixels in images]
        for entry in entries:
            self.queue.put(entry)
        return [entry.future for entry in entries]

    def close(self) -> None:
        """Answers what waits, then ends the worker."""
        with self.lock:
            self.closing = True
        self.queue.put(None)
        self.thread.join()
        self.worker.stop()

    def _run(self) -> None:
        last = False
        while not last:
            first = self.queue.get()
            if first is None:
                return
            batch = [first]
            deadline = time.monotonic() + self.max_wait_s
            while len(batch) < self.max_batch:
                try:
                    entry = self.queue.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    break
                if entry is None:
                    last = True
                    break
                batch.append(entry)
            self._answer(batch)

    def _answer(self, batch: list[Waiting]) -> None:
        # A client that gave up has cancelled its future; one that is taken here can't be cancelled any more.
        live = [entry for entry in batch if entry.future.set_running_or_notify_cancel()]
        try:
            if live:
                started = time.monotonic()
                outputs = self._infer(np.stack([entry.pixels for entry in live]))
                spent = time.monotonic() - started
                self.observe(len(live), spent)
                for entry, output in zip(live, outputs, strict=True):
                    entry.future.set_result((output, started - entry.since, spent))
        except Exception as error:  # whatever it is, it is the answer of these requests, and not the end of the thread
            for entry in live:
                entry.future.set_exception(error)
        finally:
            with self.lock:
                self.count -= len(batch)

    def _infer(self, pixels: np.ndarray) -> list[Output]:
        for attempt in range(_ATTEMPTS):
            try:
                return self.worker.infer(pixels)
            except WorkerLost:
                self.healthy = False
                if attempt == _ATTEMPTS - 1:
                    raise
                try:
                    self.worker.start()
                except VitedgeError:
                    if attempt == _ATTEMPTS - 2:
                        raise
                    continue
                self.restarted()
                self.healthy = True
        raise AssertionError("unreachable")
