"""What merging tokens is worth in ONNX Runtime, FP32: a model merged at a given schedule over the dense one, in pairs.

    python benchmarks/merging.py --model random:vit_b_16 --left 3:157,6:117,9:77

Both graphs are written as `vitedge build` writes them (each form of the attention is timed, the fastest kept). The runs
alternate, so that a machine that drifts slows both; the figure is the median of the ratios of neighbours, with the
quartiles beside it. With random weights it says nothing of accuracy.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch

from vitedge.data.preprocess import Preprocess
from vitedge.export.vit import export_vit
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner
from vitedge.targets.onnxruntime.target import OnnxRuntimeOptions
from vitedge.targets.onnxruntime.tune import write_fastest
from vitedge.vit.architecture import Architecture
from vitedge.vit.checkpoint import load_model
from vitedge.vit.checkpoint.save import build_model
from vitedge.vit.config import Merge
from vitedge.vit.macs import model_macs


def merged(model: Architecture, schedule: str) -> Architecture:
    """The model with each image's tokens matched: block:tokens that are left, by commas."""
    config = model.config
    for index, left in (map(int, stage.split(":")) for stage in schedule.split(",")):
        config = config.with_block(index, merge=Merge(left))
    return build_model(config, model.state_dict())


def write(model: Architecture, preprocess: Preprocess, folder: Path, name: str) -> Path:
    """The graph in its fastest form here."""
    weights = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    plain, out = folder / f"{name}-plain.onnx", folder / f"{name}.onnx"
    onnx.save(export_vit(model.config, weights, preprocess, 1), plain)
    print(name, write_fastest(plain, out, OnnxRuntimeOptions(), None)["form"])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:vit_b_16")
    parser.add_argument("--left", default="3:157,6:117,9:77")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loaded = load_model(args.model)
    models = {"dense": loaded.model, "merged": merged(loaded.model, args.left)}
    share = model_macs(models["merged"].config) / model_macs(models["dense"].config)
    side = loaded.preprocess.crop
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    with TemporaryDirectory() as folder:
        paths = {name: write(model, loaded.preprocess, Path(folder), name) for name, model in models.items()}
        runners = {name: OnnxRuntimeRunner(path, threads=args.threads) for name, path in paths.items()}
        times: dict[str, list[float]] = {name: [] for name in runners}
        for number in range(args.pairs + 3):
            for name, runner in runners.items():
                started = time.perf_counter()
                runner.infer(pixels)
                if number >= 3:
                    times[name].append(1e3 * (time.perf_counter() - started))
    ratios = np.array(times["merged"]) / np.array(times["dense"])
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    medians = ", ".join(f"{name} {np.median(values):.1f} ms" for name, values in times.items())
    print(f"MACs {share:.3f}; latency {middle:.3f} [{low:.3f}, {high:.3f}]; medians: {medians}")


if __name__ == "__main__":
    main()
