"""A small run folder, and the command line on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench_small import SIZE, write_classifier

from vitedge.bundle import Bundle
from vitedge.data.preprocess import Preprocess
from vitedge.files import write_json, write_text

ROOT = Path(__file__).parent.parent.parent
QUICK = ("--seconds", "0.05", "--launches", "2")


def make_run(folder: Path, noise: float = 0.0005) -> Path:
    """A run with an FP32 and an INT8 artifact of the small classifier, and one for a target that is not
    here."""
    bundle = Bundle.create(folder / "run")

    def compress(out: Path) -> dict:
        Preprocess(SIZE, SIZE).save(out / "model/preprocess.json")
        write_json(out / "model/arch.json", {"classes": 4, "activation": "softmax"})
        write_text(out / "model/classes.txt", "north west\nnorth east\nsouth west\nsouth east\n")
        write_classifier(out / "onnx/float32.onnx")
        return {}

    def build(precision: str, noise: float, **extra):
        def work(out: Path) -> dict:
            at = out / f"build/onnxruntime-{precision}"
            write_classifier(at / "model.onnx", noise)
            facts = {"target": "onnxruntime", "precision": precision, "platform": None, "artifact": "model.onnx"}
            write_json(at / "metadata.json", facts | {"warnings": [], "macs": 3072, "params": 3072} | extra)
            return {}

        return work

    bundle.run_step("compress", compress, options={}, inputs=[], code="1")
    bundle.run_step("build/onnxruntime-fp32", build("fp32", 0.0), options={}, inputs=[], code="1")
    bundle.run_step("build/onnxruntime-int8", build("int8", noise), options={}, inputs=[], code="1")
    return folder / "run"


def vitedge(*arguments: object, code: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "vitedge", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done
