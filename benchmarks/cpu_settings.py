"""What ONNX Runtime's settings do to the latency of one artifact: threads, pinning, spinning, arena, memory pattern.

Each setting in a process of its own, timed in turns; ratios to the settings that vitedge uses.

    python benchmarks/cpu_settings.py RUN/build/onnxruntime-int8 [--rounds 12] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.host.memory import peak_rss_mib
from vitedge.targets.onnxruntime.runner import config_entries, session_settings

# Name -> what differs from `session_settings`.
SETTINGS: dict[str, dict[str, Any]] = {
    "as vitedge runs it": {},
    "one thread": {"intra_op_num_threads": 1},
    "threads pinned, one a processor": {"pin": True},
    "no spinning (session.intra_op.allow_spinning = 0)": {"config": {"session.intra_op.allow_spinning": "0"}},
    "blocks of one size (no session.dynamic_block_base)": {"config": {"session.dynamic_block_base": "0"}},
    "Q/DQ fused by ONNX Runtime (session.disable_quant_qdq = 0)": {"config": {"session.disable_quant_qdq": "0"}},
    "no memory arena": {"enable_cpu_mem_arena": False},
    "no memory pattern": {"enable_mem_pattern": False},
    "parallel execution": {"execution_mode": "ORT_PARALLEL"},
    "denormals as zero": {"config": {"session.set_denormal_as_zero": "1"}},
}


def worker(path: Path, changes: dict[str, Any]) -> None:
    """Loads, tells that it is ready with its peak memory, and times as many calls as each line asks for."""
    import onnxruntime as ort

    processors = sorted(os.sched_getaffinity(0))
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = len(processors), 1
    changes = {**changes, "config": {**config_entries(session_settings()), **changes.get("config", {})}}
    for name, value in changes.items():
        if name == "config":
            for key, text in value.items():
                options.add_session_config_entry(key, text)
        elif name == "pin":
            # The calling thread is pinned by the operating system, the others by ONNX Runtime (which counts from 1).
            os.sched_setaffinity(0, processors[:1])
            others = ";".join(str(p + 1) for p in processors[1:])
            options.add_session_config_entry("session.intra_op_thread_affinities", others)
        else:
            setattr(options, name, getattr(ort.ExecutionMode, value) if name == "execution_mode" else value)
    session = ort.InferenceSession(str(path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0]
    pixels = np.random.default_rng(0).integers(0, 256, first.shape, dtype=np.uint8)
    for _ in range(10):
        session.run(None, {first.name: pixels})
    print(json.dumps(peak_rss_mib()), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line) + 3):
            started = time.perf_counter_ns()
            session.run(None, {first.name: pixels})
            times.append((time.perf_counter_ns() - started) / 1e6)
        print(json.dumps(times[3:]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.artifact, json.loads(options.worker))
        return
    times: dict[str, list[list[float]]] = {name: [] for name in SETTINGS}
    peaks = {}
    with contextlib.ExitStack() as stack:
        processes = {}
        for name, changes in SETTINGS.items():
            command = [sys.executable, __file__, str(options.artifact), "--worker", json.dumps(changes)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes[name] = process
            assert process.stdout is not None
            peaks[name] = json.loads(process.stdout.readline())
        for turn in range(options.rounds):
            for name in SETTINGS if turn % 2 == 0 else reversed(SETTINGS):
                time.sleep(0.2)
                process = processes[name]
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(f"{options.calls}\n")
                process.stdin.flush()
                times[name].append(json.loads(process.stdout.readline()))
    base = np.median(times["as vitedge runs it"], axis=1)
    rows = []
    for name, found in times.items():
        ratios = np.median(found, axis=1) / base
        low, mid, high = np.percentile(ratios, (25, 50, 75))
        rows.append({"setting": name, "ratio": mid, "p25": low, "p75": high, "peak_mib": peaks[name]})
        print(f"{name:52s} {mid:.3f} [{low:.3f}, {high:.3f}]   peak {peaks[name]:.0f} MiB")
    if options.json:
        options.json.write_text(json.dumps({"rounds": options.rounds, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
