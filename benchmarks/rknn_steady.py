"""How steady an RKNN build is over seeds and numbers of calibration images: cycles by the vendor's table, accuracy in
the vendor's simulator.

    python benchmarks/rknn_steady.py --model ../shared/data/vit_ti_16 --calib ../shared/data/calib \
        --data ../shared/data/val --work /tmp/rknn-steady [--runs 256:0,256:1,256:2,256:3,256:4,128:0,512:0]

A run is SIZE:SEED; each is compressed and built by the commands that a user calls, and kept below --work. Needs the
toolchain (`vitedge toolchain install rknn`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from vitedge import targets
from vitedge.data.folder import open_dataset
from vitedge.data.loader import iter_batches
from vitedge.data.preprocess import Preprocess


def vitedge(*arguments: str) -> None:
    """Calls the command line, its output on ours."""
    print("$ vitedge", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "vitedge", *arguments], check=True)


def measure(run: Path, data: Path, count: int) -> dict:
    """The artifact's figures on the first `count` images, and those of the model as it came."""
    dataset = open_dataset(data)
    found = list(iter_batches(dataset, Preprocess.load(run / "source/preprocess.json"), 32))
    pixels = np.concatenate([p for p, _ in found])[:count]
    labels = np.asarray(dataset.labels)[np.concatenate([i for _, i in found])[:count]]
    graph = run / "onnx/reference.onnx"
    graph = graph if graph.exists() else run / "onnx/float32.onnx"
    fp32 = targets.get("onnxruntime").open(graph, {}).infer(pixels)
    folder = run / "build/rknn-int8-rk3588"
    metadata = json.loads((folder / "metadata.json").read_text())
    runner = targets.get("rknn").open(folder / metadata["artifact"], metadata)
    try:
        logits = runner.infer(pixels)
    finally:
        runner.close()
    quantisation = metadata["quantisation"]
    return {
        "vendor_cycles": metadata["vendor_cycles"],
        "top1": float((logits.argmax(1) == labels).mean()),
        "fp32_top1": float((fp32.argmax(1) == labels).mean()),
        "agreement": float((logits.argmax(1) == fp32.argmax(1)).mean()),
        "images": len(pixels),
        "float16_parts": quantisation["float16_parts"],
        "expected_drop": [quantisation["expected_drop"], quantisation["expected_drop_error"]],
        "check_images": quantisation["check_images"],
        "builds": len(quantisation["trials"]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "calib", "data", "work"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--runs", default="256:0,256:1,256:2,256:3,256:4,128:0,512:0")
    parser.add_argument("--images", type=int, default=500)
    given = parser.parse_args()
    results = []
    for name in given.runs.split(","):
        size, seed = name.split(":")
        run = Path(given.work) / f"{size}-{seed}"
        if not (run / "onnx/float32.onnx").exists():
            options = ("--calib-size", size, "--seed", seed, "--run", str(run))
            vitedge("compress", "--model", given.model, "--calib", given.calib, *options)
        vitedge("build", "--target", "rknn", "--run", str(run))
        results.append({"run": name} | measure(run, Path(given.data), given.images))
        print(json.dumps(results[-1]), flush=True)
    cycles, agreement = ([one[key] for one in results] for key in ("vendor_cycles", "agreement"))
    drops = [100 * (one["fp32_top1"] - one["top1"]) for one in results]
    spread = {"cycles": max(cycles) / min(cycles) - 1, "agreement": max(agreement) - min(agreement)}
    print(json.dumps({"runs": len(results), "spread": spread, "largest_top1_drop": max(drops)}))
