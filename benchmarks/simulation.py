"""How exactly PyTorch's simulation of a quantised model is what ONNX Runtime computes, image by image.

    vitedge compress --quantize qat --preset full ... && vitedge build --precision int8
    python benchmarks/simulation.py RUN --data ../shared/data/val

Both get the same images. "equal" counts those whose logits differ by float rounding alone (1e-4 of their range): on
the others a value fell the other way at a tie somewhere, and moved others. The plain Q/DQ graph, run in float, is a
third implementation of the same scheme.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from vitedge.bundle import Bundle
from vitedge.data.folder import open_dataset
from vitedge.data.sample import load_pixels
from vitedge.metrics import fidelity
from vitedge.quant import Scheme, simulate
from vitedge.steps.source import read_preprocess
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner
from vitedge.vit.checkpoint import read_model


def compared(a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
    """Two sets of logits [images, classes] of the same images; no SQNR where they are equal."""
    return {
        **fidelity(b, a),
        "equal": float((np.abs(a - b).max(1) < 1e-4 * np.ptp(b, 1)).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=None, help="images of --data used")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    bundle = Bundle.open(given.run)
    prep = read_preprocess(bundle)
    sim = simulate(read_model(bundle.path("model")), Scheme.load(bundle.path("quant")), prep)
    with tempfile.TemporaryDirectory() as scratch:
        pixels, _ = load_pixels(open_dataset(given.data), prep, given.limit, 0, Path(scratch, "pixels.npy"))
        with torch.no_grad():
            parts = [np.ascontiguousarray(pixels[i : i + 16]) for i in range(0, len(pixels), 16)]
            logits = {"simulation": np.concatenate([sim(torch.from_numpy(prep.normalize(p))).numpy() for p in parts])}
        graphs = {"built": "build/onnxruntime-int8/model.onnx", "plain Q/DQ": "onnx/int8.onnx"}
        for name, path in graphs.items():
            runner = OnnxRuntimeRunner(bundle.verified(path))
            logits[name] = np.concatenate([runner.infer(pixels[i : i + 1]) for i in range(len(pixels))])
    rows = {}
    print(f"{len(pixels)} images\n\n| | agreement | equal | SQNR, dB |\n| --- | --- | --- | --- |")
    for a, b in (("built", "simulation"), ("plain Q/DQ", "simulation"), ("plain Q/DQ", "built")):
        row = rows[f"{a} against {b}"] = compared(logits[a], logits[b])
        sqnr = "exact" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
        print(f"| {a} against {b} | {row['agreement']:.3f} | {row['equal']:.3f} | {sqnr} |")
    if given.json:
        given.json.write_text(json.dumps({"images": len(pixels), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
