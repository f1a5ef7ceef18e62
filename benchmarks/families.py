"""Models of several families the whole way: accuracy of small trained ones, cosine to FP32 of large random ones.

    python benchmarks/families.py trained MODEL... --data DIR --calib DIR --work DIR [--heads 4] [--targets rknn,...]
    python benchmarks/families.py random clip,dinov2,siglip --calib DIR --work DIR [--calib-size 64]

`trained`: top-1 of PyTorch, of the FP32 and of the INT8 artifacts, on the images of DIR (a folder a class).
`random`: timm's CLIP ViT-B/32, DINOv2 ViT-S/14 with registers and SigLIP ViT-B/16 with random weights at 224 pixels:
`compress --prune 0.15 --recover ridge --quantize static`, then every target. Cosines of such embeddings say whether
the graphs are right, and nothing of accuracy. One line of JSON a row; needs timm, openvino and the RKNN toolchain.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

import vitedge
from vitedge import targets
from vitedge.bench.from_bundle import find_preprocess
from vitedge.bundle import Bundle
from vitedge.data.folder import open_dataset
from vitedge.data.loader import iter_batches
from vitedge.errors import VitedgeError
from vitedge.metrics import agreement, directions
from vitedge.reporter import Reporter

NAMES = {
    "clip": ("vit_base_patch32_clip_224", {}),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {"img_size": 224, "num_classes": 0}),
    "siglip": ("vit_base_patch16_siglip_224", {"num_classes": 0}),
}
BUILDS = (("onnxruntime", "int8"), ("openvino", "int8"), ("rknn", "int8"))


def random_folder(name: str, folder: Path, depth: int | None = None) -> Path:
    """A timm folder with random weights: a few channels of each LayerNorm are far out, as in trained models."""
    import timm
    import torch

    architecture, options = NAMES[name]
    options = options | ({} if depth is None else {"depth": depth})
    torch.manual_seed(0)
    model = timm.create_model(architecture, pretrained=False, **options)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key and key.endswith("weight"):
                parameter[3] *= 6
            elif parameter.ndim > 1 and "head" in key:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    data = dict(model.pretrained_cfg)
    if "img_size" in options:
        data |= {"input_size": (3, 224, 224), "num_classes": 0}
    timm.models.save_for_hf(
        model, folder, model_config={"num_classes": model.num_classes, "pretrained_cfg": data}, model_args=options
    )
    return folder


def outputs(run: vitedge.api.Run, artifact: str, pixels: np.ndarray) -> np.ndarray:
    """What an artifact, or a graph of the run, says of the images."""
    if artifact.endswith(".onnx"):
        runner = targets.get("onnxruntime").open(run.root / artifact, {})
    else:
        found = next(one for one in run.artifacts if one.name == artifact)
        runner = targets.get(found.target).open(found.path, found.facts)
    try:
        return np.concatenate([runner.infer(pixels[k : k + 1]) for k in range(len(pixels))])
    finally:
        runner.close()


def build_all(run: vitedge.api.Run, wanted: list[str]) -> dict[str, str]:
    """Artifact -> error, or nothing."""
    made = {}
    for target, precision in BUILDS:
        if target not in wanted:
            continue
        start = time.perf_counter()
        try:
            name, problem = run.build(target, precision=precision, reporter=Reporter()).name, ""
        except VitedgeError as error:
            name, problem = f"{target}-{precision}", f"{error.what} {error.why}"[:300]
        made[name] = problem
        print(
            json.dumps({"built": name, "seconds": round(time.perf_counter() - start), "problem": problem}), flush=True
        )
    return made


def tensorrt_graph(run: vitedge.api.Run, pixels: np.ndarray) -> np.ndarray:
    """Outputs of the typed FP16 graph for TensorRT, computed by ONNX Runtime."""
    import onnx

    from vitedge.export.typed import typed_graph

    typed = typed_graph(onnx.load(run.root / "onnx/float32.onnx"), pixels[:8])
    path = run.root.parent / "typed.onnx"
    onnx.save(typed.model, path)
    runner = targets.get("onnxruntime").open(path, {})
    return np.concatenate([runner.infer(pixels[k : k + 1]) for k in range(len(pixels))]).astype(np.float32)


def cosines(reference: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Mean, and of the worst image."""
    each = (directions(reference) * directions(found)).sum(1)
    return {"cosine": round(float(each.mean()), 5), "worst": round(float(each.min()), 5)}


def random(args: argparse.Namespace) -> None:
    """One row an artifact."""
    for name in args.models[0].split(","):
        start, root = time.perf_counter(), args.work / name
        folder = random_folder(name, root / "source", args.depth)
        calib = {"calib": str(args.calib), "calib_size": args.calib_size}
        run = vitedge.compress(
            folder, run=root / "run", prune=0.15, recover="ridge", quantize="static", verify=False, **calib
        )
        print(json.dumps({"model": name, "compress_s": round(time.perf_counter() - start)}), flush=True)
        made = build_all(run, args.targets)
        pixels = np.array(np.load(run.root / "calib/pixels.npy", mmap_mode="r")[: args.images])
        source, pruned = (outputs(run, f"onnx/{graph}.onnx", pixels) for graph in ("reference", "float32"))
        rows = {"FP32, pruned": pruned, "TensorRT's FP16 graph": tensorrt_graph(run, pixels)}
        rows |= {artifact: outputs(run, artifact, pixels) for artifact, problem in made.items() if not problem}
        for row, found in rows.items():
            near = {"to_pruned": cosines(pruned, found), "to_source": cosines(source, found)}
            print(json.dumps({"model": name, "row": row, "images": len(pixels), **near}), flush=True)


def trained(args: argparse.Namespace) -> None:
    """One row an artifact."""
    import torch

    from vitedge.vit.checkpoint import load_model

    for path in args.models:
        root = args.work / Path(path).name
        told = {"heads": args.heads, "norm_eps": args.norm_eps}
        loaded = load_model(path, **told)
        dataset = open_dataset(args.data, loaded.classes, loaded.model.config.classes)
        found = list(iter_batches(dataset, loaded.preprocess, 50))
        pixels, labels = np.concatenate([p for p, _ in found]), dataset.labels[np.concatenate([i for _, i in found])]
        with torch.no_grad():
            torch_logits = np.concatenate(
                [loaded.model(torch.from_numpy(loaded.preprocess.normalize(p))).numpy() for p, _ in found]
            )
        calib = {"calib": str(args.calib), "calib_size": args.calib_size}
        run = vitedge.compress(path, run=root / "run", quantize="static", verify=False, **told, **calib)
        assert find_preprocess(Bundle.open(run.root)) == loaded.preprocess
        made = build_all(run, args.targets)
        # A simulator takes long: it sees some of each class, and PyTorch's figure on them stands beside its own.
        few = np.arange(0, len(pixels), max(1, len(pixels) // args.simulated))
        for row in ("PyTorch", "onnx/float32.onnx", *(artifact for artifact, problem in made.items() if not problem)):
            at = few if row.startswith("rknn") else np.arange(len(pixels))
            logits = torch_logits if row == "PyTorch" else outputs(run, row, pixels[at])
            right = labels[at] == logits.argmax(1)
            figures = {"top1": float(right.mean()), "agreement": agreement(torch_logits[at], logits)}
            figures["pytorch_top1"] = float((torch_logits[at].argmax(1) == labels[at]).mean())
            epsilon = loaded.model.config.norm_eps
            print(
                json.dumps({"model": Path(path).name, "eps": epsilon, "row": row, "n": len(at), **figures}),
                flush=True,
            )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["trained", "random"])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--heads", type=int)
    parser.add_argument("--norm-eps", type=float, help="where nothing with the model tells")
    parser.add_argument("--calib-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--depth", type=int, help="Of random models: so many blocks, for a quick look.")
    parser.add_argument("--simulated", type=int, default=200)
    parser.add_argument("--targets", type=lambda text: text.split(","), default=["onnxruntime", "openvino", "rknn"])
    args = parser.parse_args()
    {"trained": trained, "random": random}[args.what](args)


if __name__ == "__main__":
    main()
