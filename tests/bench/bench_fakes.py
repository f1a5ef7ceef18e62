"""Targets with known behaviour, for the harness's own tests: `metadata` says what the runner does."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.targets.base import Runner


class FakeRunner(Runner):
    """Logits are a fixed linear map of the image's mean colours; it takes `ms` an inference."""

    def __init__(self, metadata: dict[str, Any], threads: int | None) -> None:
        self.metadata = metadata
        self.device = metadata.get("device", "cpu")
        self.batch = metadata.get("batch")
        self.calls = 0
        rng = np.random.default_rng(7)
        self.weights = rng.normal(0, 1, (3, metadata.get("classes", 10)))
        self.noise = np.random.default_rng(8)

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        self.calls += 1
        do, after = self.metadata.get("do"), self.metadata.get("after", 0)
        if do and self.calls > after:
            if do == "crash":
                print("driver: fatal error 42", flush=True)
                os.kill(os.getpid(), signal.SIGSEGV)
            if do == "hang":
                time.sleep(3600)
            if do == "memory":
                self.hog = [bytearray(2**28) for _ in range(64)]
            if do == "raise":
                raise RuntimeError("the compiler's own words")
            if do == "exit":
                os._exit(3)
        if self.batch is not None and len(pixels) != self.batch:
            raise ValueError(f"batch {len(pixels)} instead of {self.batch}")
        if ms := self.metadata.get("ms"):
            end = time.perf_counter_ns() + ms * 1e6
            while time.perf_counter_ns() < end:
                pass
        logits = (pixels.reshape(len(pixels), -1, 3).mean(1) / 64 - 2) @ self.weights
        if noise := self.metadata.get("noise"):
            logits = logits + self.noise.normal(0, noise, logits.shape)
        return logits.astype(np.float32)

    def close(self) -> None:
        pass


class FakeTarget:
    name = "fake"

    def open(self, artifact: Path, metadata: dict[str, Any], *, threads: int | None = None) -> FakeRunner:
        if metadata.get("do") == "refuse":
            raise RuntimeError("no such device")
        return FakeRunner(metadata, threads)


TARGET = FakeTarget()
