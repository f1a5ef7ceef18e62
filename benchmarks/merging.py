"""What merging tokens is worth in ONNX Runtime, FP32: a model merged at a given schedule over the dense one, in pairs.

    python benchmarks/merging.py --model random:vit_b_16 --left 3:157,6:117,9:77
    git clone https://github.com/facebookresearch/ToMe
    python benchmarks/merging.py --model ../shared/data/vit_ti_16 --data ../shared/data/val --tome ToMe

Both graphs are written as `vitedge build` writes them (each form of the attention is timed, the fastest kept). `--tome`
adds a peer: ToMe's own patch on timm's ViT with the same weights and schedule, exported by torch.onnx. The runs
alternate, so that a machine that drifts slows all; the figures are medians of the ratios of neighbours, with the
quartiles beside them. With random weights they say nothing of accuracy; `--data` adds top-1, and the agreement with the
dense model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
import torch
from tome_peer import export_tome

from vitedge.data.folder import open_dataset
from vitedge.data.preprocess import Preprocess
from vitedge.data.sample import load_pixels
from vitedge.export.vit import export_vit
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner
from vitedge.targets.onnxruntime.target import OnnxRuntimeOptions
from vitedge.targets.onnxruntime.tune import write_fastest
from vitedge.vit.architecture import Architecture
from vitedge.vit.block import Merge
from vitedge.vit.checkpoint import load_model
from vitedge.vit.checkpoint.save import build_model
from vitedge.vit.macs import model_macs

Infer = Callable[[np.ndarray], np.ndarray]


def merged(model: Architecture, left: dict[int, int]) -> Architecture:
    """The model with each image's tokens matched: block -> tokens that are left."""
    config = model.config
    for index, tokens in left.items():
        config = config.with_block(index, merge=Merge(tokens))
    return build_model(config, model.state_dict())


def plain_session(path: Path, preprocess: Preprocess, threads: int) -> tuple[Infer, Infer]:
    """Of a graph that takes normalised images: a run on uint8 pixels [1, H, W, 3], and one on what is normalised."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options)
    name = session.get_inputs()[0].name

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(None, {name: images})[0]

    return lambda pixels: run(preprocess.normalize(pixels)), run


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
    parser.add_argument("--tome", type=Path, help="a clone of facebookresearch/ToMe, whose patch is measured too")
    parser.add_argument("--data", type=Path, help="labelled images; none for random weights")
    parser.add_argument("--limit", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loaded = load_model(args.model)
    left = {int(block): int(tokens) for block, tokens in (stage.split(":") for stage in args.left.split(","))}
    models = {"dense": loaded.model, "merged": merged(loaded.model, left)}
    share = model_macs(models["merged"].config) / model_macs(models["dense"].config)
    side = loaded.preprocess.crop
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    with TemporaryDirectory() as name:
        folder = Path(name)
        infer: dict[str, Infer] = {}
        for name, model in models.items():
            infer[name] = OnnxRuntimeRunner(write(model, loaded.preprocess, folder, name), threads=args.threads).infer
        timed = {name: (run, pixels) for name, run in infer.items()}
        if args.tome:
            export_tome(loaded.model, args.tome, left, folder / "tome.onnx")
            infer["ToMe"], run = plain_session(folder / "tome.onnx", loaded.preprocess, args.threads)
            # What prepares its images is not counted.
            timed["ToMe"] = run, loaded.preprocess.normalize(pixels)
        times = measure(timed, args.pairs)
        print(f"MACs {share:.3f}; medians: " + ", ".join(f"{n} {np.median(t):.1f} ms" for n, t in times.items()))
        for one, other in (("merged", "dense"), ("ToMe", "dense"), ("merged", "ToMe")):
            if one in times and other in times:
                low, middle, high = np.percentile(times[one] / times[other], [25, 50, 75])
                print(f"latency of {one} over {other}: {middle:.3f} [{low:.3f}, {high:.3f}]")
        if args.data:
            judge(infer, args.data, args.limit, loaded.preprocess, folder)


def measure(timed: dict[str, tuple[Infer, np.ndarray]], pairs: int) -> dict[str, np.ndarray]:
    """Milliseconds of each run of each graph, in turns."""
    times: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(pairs + 3):
        for name, (run, images) in timed.items():
            started = time.perf_counter()
            run(images)
            if number >= 3:
                times[name].append(1e3 * (time.perf_counter() - started))
    return {name: np.array(values) for name, values in times.items()}


def judge(infer: dict[str, Infer], data: Path, limit: int, preprocess: Preprocess, folder: Path) -> None:
    """Prints top-1 of each graph, and its agreement with the dense one."""
    pixels, used = load_pixels(open_dataset(data), preprocess, limit, 0, folder / "pixels.npy")
    labels, dense = np.asarray(used.labels), None
    for name, run in infer.items():
        found = np.concatenate([run(np.ascontiguousarray(image[None])) for image in pixels]).argmax(1)
        dense = found if dense is None else dense
        print(f"{name}: top-1 {(found == labels).mean():.3f}, agreement {(found == dense).mean():.3f}")


if __name__ == "__main__":
    main()
