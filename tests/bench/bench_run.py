"""A small run folder, and the command line on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench_small import SIZE, write_classifier

from vitedge.bundle import Bundle
from vitedge.data.preprocess import Preprocess
from vitedge.files import write_json, write_text

ROOT = Path(__file__).parent.parent.parent
QUICK = ("--seconds", "0.05", "--launches", "2")


def make_compressed(out: Path, noise: float = 0.0) -> None:
    """What `vitedge compress` leaves of the small classifier."""
    Preprocess(SIZE, SIZE).save(out / "model/preprocess.json")
    write_json(out / "model/arch.json", {"classes": 4, "activation": "softmax"})
    write_text(out / "model/classes.txt", "north west\nnorth east\nsouth west\nsouth east\n")
    write_classifier(out / "onnx/float32.onnx", noise)


def make_run(
    folder: Path, noise: float = 0.0005, *, extra_files: Mapping[str, int] | None = None, host_only: Sequence[str] = ()
) -> Path:
    """A run with an FP32 and an INT8 artifact of the small classifier; the latter with `extra_files` (bytes)."""
    bundle = Bundle.create(folder / "run")

    def compress(out: Path) -> dict:
        make_compressed(out)
        return {}

    bundle.run_step("compress", compress, options={}, inputs=[], code="1")
    rebuild(folder / "run", "fp32", 0.0)
    rebuild(folder / "run", "int8", noise, extra_files, host_only)
    return folder / "run"


def rebuild(
    run: Path,
    precision: str,
    noise: float,
    extra_files: Mapping[str, int] | None = None,
    host_only: Sequence[str] = (),
) -> None:
    """Builds one artifact, from the run's float graph."""

    def work(out: Path) -> dict:
        at = out / f"build/onnxruntime-{precision}"
        write_classifier(at / "model.onnx", noise)
        facts = {"target": "onnxruntime", "precision": precision, "platform": None, "artifact": "model.onnx"}
        facts |= {"warnings": [], "macs": 3072, "params": 3072, "host_only": list(host_only)}
        write_json(at / "metadata.json", facts)
        for name, size in (extra_files or {}).items():
            (at / name).parent.mkdir(parents=True, exist_ok=True)
            (at / name).write_bytes(bytes(size))
        return {}

    options = {"noise": noise}
    name, inputs = f"build/onnxruntime-{precision}", ["onnx/float32.onnx"]
    Bundle.open(run).run_step(name, work, options=options, inputs=inputs, code="1")


def vitedge(
    *arguments: object, code: int = 0, cwd: Path | None = None, columns: int = 200
) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": str(columns)}
    done = subprocess.run(
        [sys.executable, "-m", "vitedge", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done
