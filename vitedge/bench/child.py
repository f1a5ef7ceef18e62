"""The process of one row: opens one artifact, and times or runs it on command.

`python -m vitedge.bench.child PARENT` (a process id) is a worker as `vitedge.workers` describes it. What the vendor's
libraries print goes to stderr. Images come, and logits go, by plain files in a folder that both processes know. The
commands are the methods of `Child`.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

import numpy as np

from vitedge import targets
from vitedge.bench import energy, latency
from vitedge.bench.batching import as_batches, infer_all
from vitedge.host.memory import peak_rss_mib, rss_mib
from vitedge.targets.base import Runner
from vitedge.workers import Message, die_with


class Child:
    """Each public method is a command; its keyword arguments are the message's keys."""

    def __init__(self) -> None:
        self.runners: list[Runner] = []
        self.inputs: list[np.ndarray] = []
        self.spec: Message = {}

    def open(
        self,
        *,
        target: str,
        artifact: str,
        metadata: Message,
        threads: int | None = None,
        module: str | None = None,
        cores: list[int] | None = None,
        memory_limit_mib: int | None = None,
    ) -> Message:
        """Opens the artifact. `cores` binds the process; `module` holds the TARGET where it is not
        registered."""
        if memory_limit_mib:
            limit = memory_limit_mib * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if cores:
            os.sched_setaffinity(0, cores)
        self.spec = {"artifact": Path(artifact), "metadata": metadata, "threads": threads}
        self.target = importlib.import_module(module).TARGET if module else targets.get(target)
        base = rss_mib()
        start = time.perf_counter_ns()
        runner = self._open()
        load_ms = (time.perf_counter_ns() - start) / 1e6
        return {
            "device": runner.device,
            "versions": runner.versions,
            "batch": runner.batch,
            "load_ms": load_ms,
            "base_rss_mib": base,
            "affinity": sorted(os.sched_getaffinity(0)),
        }

    def _open(self) -> Runner:
        runner = self.target.open(self.spec["artifact"], self.spec["metadata"], threads=self.spec["threads"])
        self.runners.append(runner)
        return runner

    def load(self, *, pixels: str, shape: list[int], batch: int = 1) -> Message:
        """Takes the images for timing from a raw uint8 file, in batches of `batch` (or the artifact's
        own)."""
        images = np.fromfile(pixels, np.uint8).reshape(shape)
        batch = self.runners[0].batch or batch
        self.inputs = as_batches(images, batch)
        return {"batch": batch, "inputs": len(self.inputs)}

    def cold(self, *, calls: int = 10) -> Message:
        """The first inference and the peak memory after a few more; only sensible right after open and
        load."""
        first = latency.time_calls(self.runners[0].infer, self.inputs, 1)[0]
        latency.time_calls(self.runners[0].infer, self.inputs, calls - 1)
        return {"first_ms": first / 1e6, "peak_rss_mib": peak_rss_mib()}

    def warm_up(self, *, least_s: float = 0.5, most_s: float = 5.0) -> Message:
        """Runs until steady."""
        return vars(latency.warm_up(self.runners[0].infer, self.inputs, least_s=least_s, most_s=most_s))

    def time(self, *, calls: int, untimed: int = 1) -> Message:
        """Times `calls` inferences, after `untimed` ones that fill the caches that another process took."""
        for call in range(untimed):
            self.runners[0].infer(self.inputs[call % len(self.inputs)])
        return {"ns": latency.time_calls(self.runners[0].infer, self.inputs, calls)}

    def sustain(self, *, seconds: float) -> Message:
        """Back-to-back inferences; the answer holds the start and the duration of each."""
        starts, spent = latency.sustained(self.runners[0].infer, self.inputs, seconds)
        return {"starts_ns": starts, "ns": spent}

    def throughput(self, *, seconds: float, contexts: int = 1) -> Message:
        """`contexts` runners at once, each in a thread."""
        while len(self.runners) < contexts:
            self._open()
        runners = [runner.infer for runner in self.runners[:contexts]]
        latency.throughput(runners, self.inputs, min(0.5, seconds))
        images, taken = latency.throughput(runners, self.inputs, seconds)
        return {"images": images, "seconds": taken}

    def energy(self, *, seconds: float) -> Message:
        """Energy of the rails that can be read over `seconds` of back-to-back inferences, or None."""
        found = energy.measure(self.runners[0].infer, self.inputs, seconds)
        return {"energy": found and asdict(found)}

    def device_times(self, *, calls: int) -> Message:
        """Copies and compute apart, where the runner reads the device's clock, or None."""
        found = latency.device_times(self.runners[0], self.inputs, calls)
        return {"device_ms": found and {name: asdict(one) for name, one in found.items()}}

    def stages(self, *, files: list[str], preprocess: Message, calls: int) -> Message:
        """Pre-processing, inference and post-processing of image files, apart and together."""
        # Decoding is not needed by artifacts that get no image files.
        from vitedge.bench.stages import time_stages
        from vitedge.data.preprocess import Preprocess

        found = time_stages(self.runners[0], [Path(file) for file in files], Preprocess.from_dict(preprocess), calls)
        return {name: asdict(one) for name, one in found.items()}

    def infer(self, *, pixels: str, shape: list[int], logits: str) -> Message:
        """Runs a raw uint8 file [N, H, W, 3] and writes raw float32 logits [N, classes]."""
        images = np.fromfile(pixels, np.uint8).reshape(shape)
        out = infer_all(self.runners[0], images)
        if out.ndim != 2 or len(out) != len(images):
            raise ValueError(f"the runner gave logits of shape {list(out.shape)} for {len(images)} images")
        out.tofile(logits)
        return {"shape": list(out.shape)}

    def outputs(self, *, pixels: str, shape: list[int], folder: str) -> Message:
        """Runs a raw uint8 file and writes every output of the artifact into `folder`: 0.npy, 1.npy, ..."""
        found = self.runners[0].outputs(np.fromfile(pixels, np.uint8).reshape(shape))
        for number, one in enumerate(found):
            np.save(Path(folder, f"{number}.npy"), np.asarray(one, np.float32))
        return {"count": len(found)}

    def close(self) -> Message:
        """Closes the runners."""
        for runner in self.runners:
            runner.close()
        return {}


def serve() -> None:
    """Answers commands until `close`, or until the other side is gone."""
    child = Child()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # stdout is the vendor's libraries' from here on
    for line in sys.stdin:
        message = json.loads(line)
        command = message.pop("command")
        try:
            answer = {"ok": True} | getattr(child, command)(**message)
        except MemoryError as error:
            answer = {"ok": False, "error": "out of memory", "detail": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"ok": False, "error": _words(error), "detail": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if command == "close":
            return


def _words(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "bad_alloc" in text or "Failed to allocate memory" in text:
        return f"out of memory ({text[:300]})"
    return f"{type(error).__name__}: {text}"[:500]


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it stops the rows
    serve()
