"""Runs one artifact in its own process and environment, on command.

    python worker.py KIND ARTIFACT THREADS SHAPE     SHAPE: N,C,H,W of the float input, or N,H,W,C of uint8 pixels

Reads lines of JSON and answers each with one: {"time": N} with the milliseconds of N inferences, and
{"infer": in.npy, "to": out.npy} when the logits are written.
The first line that it writes tells how long loading took.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from convert import peak_mib

Infer = Callable[[np.ndarray], np.ndarray]


def onnxruntime(path: Path, threads: int) -> Infer:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def openvino(path: Path, threads: int, **more: object) -> Infer:
    import openvino as ov

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **more}
    request = ov.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda x: request.infer([x], share_inputs=True, share_outputs=True)[0]


def torch(path: Path, threads: int, compiled: bool = False) -> Infer:
    import torch as pt

    pt.set_num_threads(threads)
    model = pt.load(path, weights_only=False).eval()
    if compiled:
        model = pt.compile(model)

    def infer(x: np.ndarray) -> np.ndarray:
        with pt.inference_mode():
            return model(pt.from_numpy(x)).numpy()

    return infer


def vitedge(path: Path, threads: int) -> Infer:
    from vitedge import targets

    metadata = json.loads((path / "metadata.json").read_text())
    return targets.get(metadata["target"]).open(path / metadata["artifact"], metadata, threads=threads).infer


OPEN: dict[str, Callable[[Path, int], Infer]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "openvino-f32": lambda path, threads: openvino(path, threads, INFERENCE_PRECISION_HINT="f32"),
    "torch": torch,
    "compile": lambda path, threads: torch(path, threads, compiled=True),
    "vitedge": vitedge,
}


def main() -> None:
    kind, path, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    shape = [int(size) for size in sys.argv[4].split(",")]
    started = time.perf_counter()
    infer = OPEN[kind](path, threads)
    load_s = time.perf_counter() - started
    rng = np.random.default_rng(0)
    inputs = [
        rng.integers(0, 256, shape, dtype=np.uint8) if shape[-1] == 3 else rng.standard_normal(shape, np.float32)
        for _ in range(4)
    ]
    for x in inputs * 3:
        infer(x)
    peak = peak_mib()
    gc.disable()
    print(json.dumps({"load_s": load_s, "peak_mib": peak}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if "time" in command:
            for x in inputs[:3]:  # caches, clocks and threads come back from the others' turns
                infer(x)
            times = []
            for call in range(command["time"]):
                begun = time.perf_counter_ns()
                infer(inputs[call % 4])
                times.append((time.perf_counter_ns() - begun) / 1e6)
            print(json.dumps(times), flush=True)
        else:
            images = np.load(command["infer"], mmap_mode="r")
            logits = [np.array(infer(np.ascontiguousarray(images[i : i + 1]))) for i in range(len(images))]
            np.save(command["to"], np.concatenate(logits))
            print("{}", flush=True)


if __name__ == "__main__":
    main()
