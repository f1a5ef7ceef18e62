"""One ViT in every tool's INT8 and float: latency in pairs, accuracy, size, memory, time to convert.

Each tool has an environment of its own, and each artifact a process of its own; all are timed in turns within one run,
batch 1. Ratios are what counts; absolute times belong to the machine.

    python benchmarks/peers/run.py --model ../shared/data/vit_ti_16 --classes ../shared/data/classes.txt \\
        --calib ../shared/data/calib --data ../shared/data/val --json benchmarks/results/peers-vit_ti_16.json
    python benchmarks/peers/run.py --model random:vit_b_16 --calib-size 32 --calib ../shared/data/calib \\
        --json benchmarks/results/peers-vit_b_16.json         # random weights: speed and size only
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from catalogue import ENTRIES, Entry
from environments import python_of, versions_of
from sources import Sources, prepare

HERE = Path(__file__).resolve().parent
ISA = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--calib-size", type=int, default=256)
    parser.add_argument("--data", type=Path, help="labelled images; none for random weights")
    parser.add_argument("--classes", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--calls", type=int, default=10, help="timed inferences a round")
    parser.add_argument("--only", nargs="*", help="rows whose name or precision contains one of these")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "vitedge-peers")
    parser.add_argument("--reuse", action="store_true", help="measure the runs in --work as they stand")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    name = Path(options.model).name.replace("random:", "")
    options.work = options.work.resolve()
    work = options.work / name
    entries = [
        entry
        for entry in ENTRIES
        if not options.only or any(part in f"{entry.name} {entry.precision}" for part in options.only)
    ]
    sources = prepare(
        options.model,
        options.calib,
        options.calib_size,
        options.data,
        options.classes,
        work,
        options.reuse,
        any(entry.recipe.startswith("pruned") for entry in entries),
    )
    rows, running = [], []
    with contextlib.ExitStack() as stack:
        for entry in entries:
            label = f"{entry.name} {entry.precision}"
            row = make(entry, sources, work, options.work)
            rows.append(row)
            if row["status"] == "ok":
                try:
                    running.append((row, stack.enter_context(Process(entry, row, options.threads, sources))))
                except ProcessLookupError as error:
                    row |= {"status": "failed", "reason": str(error)}
            print(f"{label}: {row['status']} {row.get('reason', '')}", flush=True)
        measure(running, options.rounds, options.calls)
        if sources.labels is not None:
            judge(running, sources, work)
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    result = {
        "model": options.model,
        "random_weights": options.model.startswith("random:"),
        "threads": options.threads,
        "rounds": options.rounds,
        "calls": options.calls,
        "calibration_images": options.calib_size,
        "test_images": None if sources.labels is None else len(sources.labels),
        "machine": {
            "machine": platform.machine(),
            "processors": len(os.sched_getaffinity(0)),
            "isa": [f for f in ISA if f in flags.split()],
        },
        "versions": versions(entries, options.work),
        "rows": rows,
    }
    for row in rows:
        row.pop("artifact", None)  # a path of this machine
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")


def versions(entries: list[Entry], environments: Path) -> dict[str, dict[str, str]]:
    """Environment -> the versions of what was compared in it."""
    found = {}
    for name in sorted({entry.environment for entry in entries}):
        python, _ = python_of(name, environments)
        if python is not None:
            found[name] = versions_of(python)
    return found


def make(entry: Entry, sources: Sources, work: Path, environments: Path) -> dict[str, Any]:
    """The row of an entry with its artifact made, or with why it could not be."""
    row: dict[str, Any] = {"name": entry.name, "precision": entry.precision, "ours": entry.ours, "status": "ok"}
    python, reason = python_of(entry.environment, environments)
    if python is None:
        return row | {"status": "unavailable", "reason": reason}
    if entry.ours:
        run = "pruned" if entry.recipe.startswith("pruned/") else "run"
        made = sources.made[run]
        folder = getattr(sources, run) / "build" / entry.recipe.removeprefix("pruned/")
        facts = {"artifact": str(folder), "seconds": made["seconds"], "peak_mib": made["peak_mib"]}
        if not (folder / "metadata.json").exists():
            return row | {"status": "failed", "reason": "not built"}
    elif entry.recipe in ("", "plain"):
        facts = {"artifact": str(sources.plain if entry.recipe else sources.torch), "seconds": None, "peak_mib": None}
    else:
        out = work / entry.recipe
        kept = out / "facts.json"
        if not kept.exists():
            shutil.rmtree(out, ignore_errors=True)  # external data would be appended to
            out.mkdir(parents=True)
            command = [python, HERE / "convert.py", entry.recipe, sources.plain, sources.calibration, out]
            # In `out`: ONNX Runtime leaves the model that it calibrates in the folder where it runs.
            done = subprocess.run([str(part) for part in command], cwd=out, capture_output=True, text=True)
            if done.returncode:
                return row | {"status": "failed", "reason": (done.stderr.strip().splitlines() or ["?"])[-1][:300]}
            kept.write_text(done.stdout.strip().splitlines()[-1])
        facts = json.loads(kept.read_text())
    size = size_of(Path(facts["artifact"]))
    return row | {
        "python": str(python),
        "artifact": facts["artifact"],
        "convert_s": facts["seconds"],
        "convert_peak_mib": facts["peak_mib"],
        "size_mib": size / 2**20,
    }


def size_of(artifact: Path) -> int:
    """Bytes of what is deployed: the file, its weights beside it, or vitedge's folder without its metadata."""
    if artifact.is_dir():
        return sum(p.stat().st_size for p in artifact.iterdir() if p.name not in ("metadata.json", "build.log"))
    beside = [p for p in artifact.parent.glob(f"{artifact.name}*") if p != artifact]  # ONNX's external data
    weights = [p for p in [artifact.with_suffix(".bin")] if p.exists()]
    return sum(p.stat().st_size for p in [artifact, *beside, *weights])


class Process:
    """A worker with one artifact; a context manager."""

    def __init__(self, entry: Entry, row: dict[str, Any], threads: int, sources: Sources) -> None:
        side = np.load(sources.calibration, mmap_mode="r").shape[-1]
        shape = f"1,{side},{side},3" if entry.kind == "vitedge" else f"1,3,{side},{side}"
        command = [row.pop("python"), str(HERE / "worker.py"), entry.kind, row["artifact"], str(threads), shape]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": str(threads)}
        self.ours = entry.kind == "vitedge"
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        row |= self.answer()

    def ask(self, command: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(("{", "[")):
                return json.loads(line)
        raise ProcessLookupError(f"the process ended with {self.process.wait()}")

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def measure(running: list[tuple[dict[str, Any], Process]], rounds: int, calls: int) -> None:
    """Latencies in turns: every artifact in every round, in an order that turns round."""
    times: dict[int, list[list[float]]] = {i: [] for i in range(len(running))}
    for turn in range(rounds):
        order = range(len(running)) if turn % 2 == 0 else reversed(range(len(running)))
        for i in order:
            time.sleep(0.2)  # the last one's waiting threads stop spinning
            times[i].append(running[i][1].ask({"time": calls}))
        print(f"round {turn + 1} of {rounds}", flush=True)
    for i, (row, _) in enumerate(running):
        row["median_ms"] = float(np.median(times[i]))
        row["round_medians_ms"] = [round(float(np.median(t)), 4) for t in times[i]]


def judge(running: list[tuple[dict[str, Any], Process]], sources: Sources, work: Path) -> None:
    """Top-1 on the test images, and agreement with PyTorch's."""
    reference = None
    for row, process in running:
        process.ask(
            {"infer": str(sources.pixels if process.ours else sources.images), "to": str(work / "logits.npy")}
        )
        classes = np.load(work / "logits.npy").argmax(1)
        if reference is None:
            if row["name"] != "PyTorch eager":
                raise SystemExit("agreement needs the row 'PyTorch eager': leave --only out, or name it")
            reference = classes
        row["top1"] = float((classes == sources.labels).mean())
        row["agreement"] = float((classes == reference).mean())


if __name__ == "__main__":
    main()
