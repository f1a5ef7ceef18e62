"""The RKNN table of the README: cycles by the vendor's table, accuracy in the vendor's simulator.

    python benchmarks/rknn_table.py --model ../shared/data/vit_ti_16 --calib ../shared/data/calib \
        --data ../shared/data/val --work /tmp/rknn-table [--images 500] [--only balanced,full,fp16]

Needs the toolchain (`vitedge toolchain install rknn`). Every row is made by the commands that a user calls.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitedge import targets
from vitedge.data.folder import open_dataset
from vitedge.data.loader import iter_batches
from vitedge.data.preprocess import Preprocess


@dataclass(frozen=True)
class Row:
    """A way to compress and to build."""

    run: str
    compress: tuple[str, ...]
    build: tuple[str, ...]


ROWS = {
    "balanced": Row("exact", (), ("--precision", "int8")),
    "fp16": Row("exact", (), ("--precision", "fp16")),
    "registers": Row("registers", ("--registers",), ("--precision", "int8", "--preset", "full")),
    "full": Row("massive", ("--massive-drop", "6"), ("--precision", "int8", "--preset", "full")),
}


def vitedge(*arguments: str) -> None:
    """Calls the command line, its output on ours."""
    print("$ vitedge", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "vitedge", *arguments], check=True)


def images(data: Path, run: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images, uint8 [N, H, W, C], prepared as the run says, and their labels."""
    dataset = open_dataset(data)
    found = list(iter_batches(dataset, Preprocess.load(run / "source" / "preprocess.json"), 32))
    pixels = np.concatenate([p for p, _ in found])[:count]
    indices = np.concatenate([i for _, i in found])[:count]
    return pixels, np.asarray(dataset.labels)[indices]


def reference(run: Path, pixels: np.ndarray) -> np.ndarray:
    """Logits of the model as it was imported, by ONNX Runtime."""
    graph = run / "onnx" / "reference.onnx"
    graph = graph if graph.exists() else run / "onnx" / "float32.onnx"
    runner = targets.get("onnxruntime").open(graph, {})
    return np.concatenate([runner.infer(pixels[i : i + 1]) for i in range(len(pixels))])


def measure(run: Path, row: Row, data: Path, count: int) -> dict:
    """Builds, simulates all images, and compares with FP32 on the same ones."""
    if not (run / "onnx" / "float32.onnx").exists():
        vitedge("compress", "--model", MODEL, "--calib", CALIB, "--run", str(run), *row.compress)
    vitedge("build", "--target", "rknn", "--run", str(run), *row.build)
    pixels, labels = images(data, run, count)
    folder = run / "build" / f"rknn-{row.build[1]}-rk3588"
    metadata = json.loads((folder / "metadata.json").read_text())
    fp32 = reference(run, pixels)
    runner = targets.get("rknn").open(folder / metadata["artifact"], metadata)
    try:
        logits = runner.infer(pixels)
    finally:
        runner.close()
    return {
        "fp32_top1": float((fp32.argmax(1) == labels).mean()),
        "top1": float((logits.argmax(1) == labels).mean()),
        "agreement": float((logits.argmax(1) == fp32.argmax(1)).mean()),
        "vendor_cycles": metadata["vendor_cycles"],
        "kib_moved": metadata["kib_moved"],
        "float16_parts": metadata["quantisation"].get("float16_parts"),
        "images": len(pixels),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "calib", "data", "work"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--only", default=",".join(ROWS))
    given = parser.parse_args()
    MODEL, CALIB, WORK = given.model, given.calib, Path(given.work)
    for name in given.only.split(","):
        chosen = ROWS[name]
        result = measure(WORK / chosen.run, chosen, Path(given.data), given.images)
        print(json.dumps({"row": name} | result), flush=True)
