"""How far the harness itself can be trusted: its overhead, against a plain loop, equal artifacts, memory.

    python benchmarks/harness.py overhead
    python benchmarks/harness.py plain MODEL.onnx       against a plain loop over ONNX Runtime, in turns
    python benchmarks/harness.py equal MODEL.onnx       the same artifact twice, ten times over
    python benchmarks/harness.py memory [IMAGES]        50,000 generated images, 1000 classes

Each prints one line of JSON. MODEL.onnx is a graph of `vitedge compress` (`onnx/float32.onnx` of a run).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vitedge.bench import latency, rounds, stats
from vitedge.bench.process import Artifact, ArtifactProcess
from vitedge.host.memory import peak_rss_mib

# The loop that onnxruntime_perf_test runs, as a process of its own: run, take the time, nothing else.
_PLAIN = """
import json, sys, time
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
name, shape = session.get_inputs()[0].name, session.get_inputs()[0].shape
pixels = [np.random.default_rng(k).integers(0, 256, shape, np.uint8) for k in range(8)]
for line in sys.stdin:
    calls = int(line)
    session.run(None, {name: pixels[0]})
    out = []
    for call in range(calls):
        feed = {name: pixels[call % 8]}
        start = time.perf_counter()
        session.run(None, feed)
        out.append((time.perf_counter() - start) * 1e9)
    print(json.dumps(out), flush=True)
"""


def overhead(calls: int = 200_000) -> dict:
    """Microseconds that the loop spends on each inference outside of it, and adds to its measured time."""
    pixels = [np.zeros((1, 2, 2, 3), np.uint8)] * 8
    begin = time.perf_counter_ns()
    measured = latency.time_calls(lambda pixels: None, pixels, calls)
    whole = (time.perf_counter_ns() - begin) / calls
    return {"outside_us": round((whole - np.mean(measured)) / 1000, 3), "inside_us": round(np.mean(measured) / 1000, 3)}


def _row(path: Path, name: str) -> ArtifactProcess:
    row = ArtifactProcess(Artifact(name, "onnxruntime", "fp32", path), Path(tempfile.gettempdir()) / f"{name}.log")
    row.open(threads=_threads())
    size = 224
    row.load(np.random.default_rng(0).integers(0, 256, (8, size, size, 3), np.uint8))
    return row


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def plain(path: Path, many: int = 40, calls: int = 4) -> dict:
    """The harness's latency over a plain loop's, paired."""
    command = [sys.executable, "-c", _PLAIN, str(path), str(_threads())]
    with _row(path, "harness") as row, subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdin and other.stdout

        def loop() -> list[float]:
            other.stdin.write(f"{calls}\n")
            other.stdin.flush()
            return json.loads(other.stdout.readline())

        def harness() -> list[int]:
            return row.ask("time", calls=calls)["ns"]

        for _ in range(3):
            loop(), harness()
        a, b = [], []
        for number in range(many):
            for turn in ("ab", "ba")[number % 2]:
                (a if turn == "a" else b).append(float(np.median(harness() if turn == "a" else loop())))
        other.stdin.close()
    found = stats.paired_ratio([np.array(a)], [np.array(b)])
    return vars(found) | {"harness_ms": np.median(a) / 1e6, "plain_ms": np.median(b) / 1e6, "threads": _threads()}


def equal(path: Path, times: int = 10) -> dict:
    """How often the interval of the ratio of two equal artifacts holds 1.00."""
    found = []
    for _ in range(times):
        timed = {"a": rounds.Timed(), "b": rounds.Timed()}
        for _ in range(5):
            with _row(path, "a") as first, _row(path, "b") as second:
                rounds.time_launch({"a": first, "b": second}, timed, launches=5)
        one = rounds.ratio(timed["b"], timed["a"])
        assert one
        found.append([round(one.ratio, 4), *(round(v, 4) for v in one.ci95)])
    return {"holds_one": sum(low <= 1 <= high for _, low, high in found), "of": times, "ratio_low_high": found}


def memory(count: int = 50_000) -> dict:
    """Peak memory of a run over that many images: of the harness, and of the largest of the models'
    processes."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / "images"
        images.mkdir()
        rng = np.random.default_rng(0)
        lines = ["file,label"]
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((96, 80))
            coarse.save(images / f"{number:06}.jpg", quality=80)
            lines.append(f"{number:06}.jpg,{number % 1000}")
        (images / "labels.csv").write_text("\n".join(lines) + "\n")
        _write_linear(folder / "model.onnx")
        # A fresh process: this one has held the images' generator and onnx.
        command = [sys.executable, __file__, "memory-run", str(folder)]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def memory_run(folder: Path) -> dict:
    """The run of `memory`, in its own process."""
    from vitedge.bench.artifact import SOURCE
    from vitedge.bench.groups import Job
    from vitedge.bench.harness import Harness
    from vitedge.bench.jobs import Settings
    from vitedge.bench.result import new_row
    from vitedge.bench.source import DatasetSource
    from vitedge.data.folder import open_dataset
    from vitedge.data.preprocess import Preprocess

    before, begin = peak_rss_mib(), time.time()
    source = DatasetSource(open_dataset(folder / "images"), Preprocess(48, 48))
    jobs = []
    for name in (SOURCE, "artifact"):
        artifact = Artifact(name, "onnxruntime", "fp32", folder / "model.onnx")
        jobs.append(Job(artifact, new_row(artifact)))
    harness = Harness(source, folder / "work", Settings(seconds=0.5), reference=jobs[0])
    result = harness.run(jobs[1:])
    row = result.rows[1]
    return {
        "images": result.data.n,
        "status": row.status,
        "agreement": row.agreement,
        "seconds": round(time.time() - begin),
        "harness_mib_before": before,
        "harness_peak_mib": peak_rss_mib(),
        "row_mib_with_model": row.peak_rss_mib,
        "row_peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


def _write_linear(path: Path) -> Path:
    """A linear classifier of 48 x 48 images into 1000 classes."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(1).normal(0, 0.01, (48 * 48 * 3, 1000)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["real", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([-1, 48 * 48 * 3]), "shape"),
        numpy_helper.from_array(weights, "weights"),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 48, 48, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])
    graph = helper.make_graph(nodes, "linear", [pixels], [logits], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


if __name__ == "__main__":
    which, arguments = sys.argv[1], sys.argv[2:]
    if which == "overhead":
        print(json.dumps(overhead()))
    elif which == "memory-run":
        print(json.dumps(memory_run(Path(arguments[0]))))
    elif which == "memory":
        print(json.dumps(memory(*map(int, arguments[:1]))))
    else:
        print(json.dumps({"plain": plain, "equal": equal}[which](Path(arguments[0]))))
