"""The step that writes the ONNX graphs, and holds them against PyTorch on real images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitedge.bundle import Bundle, StepRecord
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.manifest import Facts
from vitedge.metrics import agreement
from vitedge.reporter import Reporter
from vitedge.sections import ExportSection
from vitedge.steps.model import read_config
from vitedge.steps.source import SOURCE, read_pixels, read_preprocess

if TYPE_CHECKING:
    from torch import Tensor

    from vitedge.vit.architecture import Architecture

FLOAT32 = "onnx/float32.onnx"
REFERENCE = "onnx/reference.onnx"
# The same weights with all images merged alike, for compilers that cannot sort, and its logits.
CONSTANT, CONSTANT_LOGITS = "onnx/constant.onnx", "onnx/constant-logits.npy"
LOGITS = "onnx/logits.npy"
# Images that graphs and builds are compared on.
CHECK_IMAGES = 64
# The most that a graph's logits may differ from PyTorch's, as a share of their range.
EXPORT_TOLERANCE = 1e-4
# Share of the images that may differ by more where tokens are matched: two pairs may be equally near, but for the last
# bit of a sum, and either is as good a choice.
TIES = 0.05
# Where more differ: how often, and by how much of a pixel, the model's own input is moved to find the images of such
# pairs.
ROUNDINGS, ROUNDING = 8, 1e-6


def export_graphs(bundle: Bundle, model: str, options: ExportSection, reporter: Reporter) -> StepRecord:
    """`model/` as `onnx/float32.onnx`, and the dense source as `onnx/reference.onnx` where it computes something else.

    model: folder of the bundle that holds the final float model.
    Raises VitedgeError where a graph does not compute what PyTorch does.
    """
    pixels = read_pixels(bundle)
    preprocess = read_preprocess(bundle)
    batch = None if options.dynamic_batch else options.batch
    changed = bundle.facts("model").get("function_changed", False)

    def work(folder: Path) -> Facts:
        images, kind = check_images(pixels, preprocess, bundle)
        facts: Facts = {"check_images": f"{len(images)} {kind}"}
        graphs = {FLOAT32: model} | ({REFERENCE: SOURCE} if changed else {})
        merges = [block.merge for block in read_config(bundle, model).blocks if block.merge]
        if merges and all(merge.matched and merge.groups for merge in merges):
            graphs[CONSTANT] = model
        for name, source in graphs.items():
            reporter.info(f"writing {name}")
            facts[name] = _write_graph(bundle, folder / name, source, preprocess, batch, images)
        check_sparsity(bundle, folder / FLOAT32)
        np.save(folder / LOGITS, run_graph(folder / FLOAT32, images))
        if CONSTANT in graphs:
            np.save(folder / CONSTANT_LOGITS, run_graph(folder / CONSTANT, images))
            facts[CONSTANT]["agreement_with_matched"] = agreement(
                np.load(folder / LOGITS), np.load(folder / CONSTANT_LOGITS)
            )
        return facts

    return bundle.run_step(
        "export",
        work,
        options=options.model_dump() | {"reference": changed},
        inputs=[f"{model}/model.safetensors", f"{model}/arch.json", f"{SOURCE}/model.safetensors"]
        + [f"{SOURCE}/preprocess.json"]
        + (["calib/pixels.npy"] if pixels is not None else []),
        modules=("vitedge.steps.export",),
    )


def check_sparsity(bundle: Bundle, graph: Path) -> None:
    """Raises VitedgeError where the zeros that --sparsity made are not in the graph any more."""
    if bundle.manifest.steps.get("sparsify"):
        import onnx

        from vitedge.prune.zeros import check_zeros

        check_zeros(onnx.load(graph), bundle.facts("sparsify"))


def check_images(pixels: np.ndarray | None, preprocess: Preprocess, bundle: Bundle) -> tuple[np.ndarray, str]:
    """Images that graphs are compared on, uint8 [n, H, W, C], and what they are."""
    if pixels is not None:
        return np.asarray(pixels[:CHECK_IMAGES]), "calibration images"
    return noise(preprocess), "images of noise (no calibration folder)"


def noise(preprocess: Preprocess) -> np.ndarray:
    """Images of noise, uint8 [8, H, W, C]: what is compared on where there is nothing else."""
    shape = (8, *preprocess.size, preprocess.bands)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def run_graph(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Float32 logits [n, classes] of an ONNX file in ONNX Runtime."""
    from vitedge.host.cpu import saturates
    from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner

    exact: bytes | None = None
    if saturates():  # elsewhere the file is not read twice
        import onnx

        from vitedge.targets.onnxruntime.rewrites import exact_here

        model = onnx.load(path)
        rewritten = exact_here(model)
        exact = None if rewritten is model else rewritten.SerializeToString()
    runner = OnnxRuntimeRunner(path, model=exact)
    try:
        return np.concatenate([runner.infer(pixels[i : i + 16]) for i in range(0, len(pixels), 16)])
    finally:
        runner.close()


def _write_graph(
    bundle: Bundle, path: Path, source: str, preprocess: Preprocess, batch: int | None, images: np.ndarray
) -> Facts:
    from vitedge.vit.checkpoint import read_model
    from vitedge.vit.checkpoint.save import build_model

    bundle.verified(f"{source}/model.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    model = read_model(bundle.path(source))
    if path.name == Path(CONSTANT).name:
        model = build_model(model.config.merged_alike(), model.state_dict())
    return write_graph(model, path, preprocess, batch, images)


def _tied(model: Architecture, batches: Sequence[Tensor], expected: np.ndarray) -> np.ndarray:
    """Of which images the model's own logits differ by more than the tolerance when the pixels are another rounding
    away: two pairs of their tokens are equally near. The more tokens, the more images: bool [n]."""
    import torch

    generator, moved = torch.Generator().manual_seed(0), np.zeros(len(expected))
    for _ in range(ROUNDINGS):
        with torch.inference_mode():
            parts = [model(x * (1 + ROUNDING * torch.randn(x.shape, generator=generator))) for x in batches]
        moved = np.maximum(moved, np.abs(torch.cat(parts).numpy() - expected).max(1))
    return np.asarray(moved > EXPORT_TOLERANCE * max(float(np.ptp(expected)), 1e-12))


def _difference(model: Architecture, batches: Sequence[Tensor], expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference of a graph's logits from the model's, as a share of their range, ties aside."""
    apart = np.abs(found - expected).max(1) / max(float(np.ptp(expected)), 1e-12)
    if not any(b.merge and b.merge.matched for b in model.config.blocks):
        return float(apart.max())
    ties = math.ceil(TIES * len(apart))
    difference = float(np.sort(apart)[-1 - ties])
    if difference > EXPORT_TOLERANCE:
        steady = apart[~_tied(model, batches, expected)]
        difference = float(np.sort(steady)[-1 - ties]) if len(steady) > 2 * ties else difference
    return difference


def write_graph(
    model: Architecture, path: Path, preprocess: Preprocess, batch: int | None, images: np.ndarray
) -> Facts:
    """Writes the float32 graph of a model in memory, and compares it with PyTorch on `images` uint8 [n, H, W, C].

    Returns facts of the graph. Raises VitedgeError where it does not compute what the model does.
    """
    import onnx
    import torch

    from vitedge.export.vit import export_vit
    from vitedge.vit.macs import model_macs, model_params

    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    graph = export_vit(model.config, weights, preprocess, batch)
    onnx.save(graph, path)
    batches = [torch.from_numpy(preprocess.normalize(images[i : i + 16])) for i in range(0, len(images), 16)]
    with torch.inference_mode():
        expected = torch.cat([model(x) for x in batches]).numpy()
    found = run_graph(path, images)
    difference = _difference(model, batches, expected, found)
    if not difference <= EXPORT_TOLERANCE:
        raise VitedgeError(
            "The exported graph does not compute what the model computes.",
            f"Its logits differ by {difference:.2g} of their range; {EXPORT_TOLERANCE:.0e} is allowed.",
            "This is a defect of vitedge or of the installed onnxruntime: please report it with both versions.",
            exit_code=1,
        )
    return {
        "logit_difference": difference,
        "agreement": agreement(expected, found, model.config.activation),
        "operators": dict(Counter(node.op_type for node in graph.graph.node)),
        "macs": model_macs(model.config),
        "params": model_params(model.config),
    }
