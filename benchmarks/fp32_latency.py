"""FP32 latency of our ViT-B/16 graph against a plain torch.onnx.export of torchvision's model.

Random weights: speed only. Both run in ONNX Runtime with the same session options, in one process, in turns; the ratios
are what counts.

    python benchmarks/fp32_latency.py [--threads 2] [--rounds 40] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
import torchvision

from vitedge.data.preprocess import PRESETS
from vitedge.export.vit import export_vit
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner
from vitedge.vit.checkpoint.named import random_model
from vitedge.vit.checkpoint.save import to_torchvision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_b_16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = random_model(options.model)
    theirs = torchvision.models.get_model(options.model, weights=None)
    theirs.load_state_dict(to_torchvision(model))
    preprocess = PRESETS["imagenet"]
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    image = preprocess.normalize(pixels)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    ours = OnnxRuntimeRunner(
        Path("ours"),
        threads=options.threads,
        model=export_vit(model.config, weights, preprocess).SerializeToString(),
    )
    plain = plain_export(theirs.eval(), torch.from_numpy(image), options.threads)
    a, b = ours.infer(pixels), plain.run(None, {plain.get_inputs()[0].name: image})[0]
    difference = float(np.abs(a - b).max() / np.ptp(b))
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    calls = {
        "ours": lambda: ours.infer(pixels),
        "plain": lambda: plain.run(None, {plain.get_inputs()[0].name: image}),
    }
    for turn in range(options.rounds + 5):
        for name, call in calls.items():
            started = time.perf_counter_ns()
            call()
            if turn >= 5:
                times[name].append((time.perf_counter_ns() - started) / 1e6)
    medians = {name: float(np.median(t)) for name, t in times.items()}
    turns = np.array(times["ours"]) / np.array(times["plain"])
    result = {
        "model": f"{options.model}, random weights",
        "onnxruntime": ort.__version__,
        "threads": options.threads,
        "rounds": options.rounds,
        "median_ms": medians,
        "ratio_of_medians": medians["ours"] / medians["plain"],
        "ratio_turn_by_turn": dict(zip(("p25", "p50", "p75"), np.percentile(turns, (25, 50, 75)), strict=True)),
        "logit_difference": difference,
    }
    print(json.dumps(result, indent=2, default=str))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2, default=str) + "\n")


def plain_export(model: torch.nn.Module, image: torch.Tensor, threads: int) -> ort.InferenceSession:
    """A session on what torch.onnx.export writes by itself, with the options that ours runs with."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.onnx"
        with torch.inference_mode():
            torch.onnx.export(model, (image,), path, dynamo=True, external_data=False, verbose=False)
        graph = io.BytesIO(path.read_bytes()).getvalue()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.log_severity_level = 3
    return ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
