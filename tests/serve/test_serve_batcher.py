from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from vitedge.serve.batcher import Batcher, Busy
from vitedge.serve.worker import WorkerLost

IMAGE = np.zeros((2, 2, 3), np.uint8)


class Stand:
    """A worker that can be held up, and lost."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.sizes: list[int] = []
        self.losses = self.starts = 0

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        self.free.wait(10)
        if self.losses:
            self.losses -= 1
            raise WorkerLost("killed")
        self.sizes.append(len(pixels))
        return pixels[:, 0, 0, :1].astype(np.float32)

    def start(self) -> None:
        self.starts += 1

    def stop(self) -> None:
        self.stopped = True


def batcher(worker: Stand, **changes) -> Batcher:
    return Batcher(worker, **({"max_batch": 4, "max_wait_ms": 20, "limit": 8} | changes))  # type: ignore[arg-type]


def numbered(count: int) -> list[np.ndarray]:
    return [np.full((2, 2, 3), k, np.uint8) for k in range(count)]


def test_images_go_together_and_each_gets_its_own_answer() -> None:
    worker = Stand()
    one = batcher(worker)
    futures = one.submit(numbered(8))
    assert [f.result(5)[0].item() for f in futures] == list(range(8))
    assert worker.sizes == [4, 4]
    one.close()


def test_a_full_queue_refuses_all_of_a_request_and_takes_the_next_when_there_is_room() -> None:
    worker = Stand()
    worker.free.clear()
    one = batcher(worker)
    first = one.submit(numbered(8))
    with pytest.raises(Busy):
        one.submit([IMAGE])
    worker.free.set()
    assert [f.result(5)[0].item() for f in first] == list(range(8))
    while one.waiting:
        time.sleep(0.01)
    assert one.submit([IMAGE])[0].result(5)
    one.close()


def test_a_lost_worker_is_started_again_and_its_batch_run_once_more() -> None:
    worker = Stand()
    worker.losses = 1
    one = batcher(worker)
    assert [f.result(5)[0].item() for f in one.submit(numbered(3))] == [0, 1, 2]
    assert worker.starts == 1
    worker.losses = 3
    with pytest.raises(WorkerLost):
        one.submit([IMAGE])[0].result(5)
    assert one.submit([IMAGE])[0].result(5)
    one.close()


def test_a_cancelled_image_is_not_inferred() -> None:
    worker = Stand()
    worker.free.clear()
    one = batcher(worker, max_batch=1)
    first = one.submit([IMAGE])[0]
    time.sleep(0.1)
    second = one.submit([IMAGE])[0]
    assert second.cancel()
    worker.free.set()
    assert first.result(5)
    one.close()
    assert worker.sizes == [1]


def test_closing_answers_what_waits_and_takes_nothing_more() -> None:
    worker = Stand()
    worker.free.clear()
    one = batcher(worker)
    futures = one.submit(numbered(6))
    closer = threading.Thread(target=one.close)
    closer.start()
    time.sleep(0.1)
    with pytest.raises(Busy):
        one.submit([IMAGE])
    worker.free.set()
    closer.join(5)
    assert [f.result(0)[0].item() for f in futures] == list(range(6)) and worker.stopped
