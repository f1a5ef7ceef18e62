"""What all peers start from: one model, as PyTorch, as a plain ONNX export and as a vitedge run; the same images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Sources:
    """Files of one comparison.

    Attributes:
        torch, plain: torchvision's model, pickled, and what torch.onnx.export makes of it.
        calibration: float32 [N, 3, H, W], normalised.
        run, pruned: vitedge's run folders, without and with --prune 0.3.
        made: what vitedge's own steps took: run -> seconds and peak_mib.
        pixels, images, labels: the test images as uint8 and normalised, and their classes; None without --data.
    """

    torch: Path
    plain: Path
    calibration: Path
    run: Path
    pruned: Path
    made: dict[str, dict[str, float]]
    pixels: Path | None = None
    images: Path | None = None
    labels: np.ndarray | None = None


def prepare(
    model: str,
    calib: Path,
    count: int,
    data: Path | None,
    classes: Path | None,
    work: Path,
    reuse: bool,
    pruned: bool = True,
) -> Sources:
    """Compresses with vitedge, exports plainly, and normalises the images.

    reuse: takes the runs in `work` as they stand, even if vitedge has changed since.
    pruned: whether one is pruned too.
    """
    work.mkdir(parents=True, exist_ok=True)
    base = ["compress", "--model", model, "--calib", str(calib), "--calib-size", str(count), "--quantize", "static"]
    base += ["--classes", str(classes)] if classes else []
    made = {}
    for name, more in (("run", []), ("pruned", ["--prune", "0.3"]))[: 1 + pruned]:
        if reuse and (work / f"{name}.json").exists():
            made[name] = json.loads((work / f"{name}.json").read_text())
            continue
        made[name] = _vitedge([*base, *more, "--run", str(work / name)], work / f"{name}.json")
        for target, precision in (
            ("onnxruntime", "fp32"),
            ("openvino", "bf16"),
            ("onnxruntime", "int8"),
            ("openvino", "int8"),
        ):
            command = ["build", "--target", target, "--precision", precision, "--run", str(work / name)]
            # An artifact outside its tolerance (random weights, pruning) is kept and judged below.
            subprocess.run([sys.executable, "-m", "vitedge", *command], capture_output=True, check=False)
    files = (*_export(work, model), _calibration(work, count), work / "run", work / "pruned")
    return Sources(*files, made, *_test(work, data, classes))


def _vitedge(command: list[str], kept: Path) -> dict[str, float]:
    """Seconds and peak memory of a command of vitedge; of its first run where it is cached."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "vitedge", *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"vitedge {' '.join(command)} failed")
    if not kept.exists():
        facts = {"seconds": time.perf_counter() - started, "peak_mib": usage.ru_maxrss / 1024}
        kept.write_text(json.dumps(facts))
    return json.loads(kept.read_text())


def _export(work: Path, model: str) -> tuple[Path, Path]:
    import onnx
    import torch
    import torchvision

    from vitedge.vit.checkpoint import read_model
    from vitedge.vit.checkpoint.save import to_torchvision

    torch_file, plain = work / "torchvision.pt", work / "plain.onnx"
    if plain.exists():
        return torch_file, plain
    ours = read_model(work / "run" / "source")
    config, block = ours.config, ours.config.blocks[0]
    if config.hierarchical:  # other random weights: speed and size only
        theirs = torchvision.models.get_model(model.removeprefix("random:"), weights=None)
    else:
        theirs = torchvision.models.VisionTransformer(
            config.image_size[0], config.patch_size, len(config.blocks), block.heads, config.width, block.hidden,
            num_classes=config.classes,
        )  # fmt: skip
        theirs.load_state_dict(to_torchvision(ours))
    theirs.eval()
    torch.save(theirs, torch_file)
    image = torch.zeros(1, 3, *config.image_size)
    with torch.inference_mode():
        torch.onnx.export(theirs, (image,), plain, dynamo=True, external_data=False, verbose=False)
    graph = onnx.load(plain)
    del graph.graph.value_info[:]  # ONNX Runtime's quantisers stumble over the exporter's
    onnx.save(graph, plain)
    return torch_file, plain


def _calibration(work: Path, count: int) -> Path:
    from vitedge.bundle import Bundle
    from vitedge.steps.source import read_preprocess

    out = work / "calibration.npy"
    if not out.exists():
        pixels = np.load(work / "run" / "calib" / "pixels.npy", mmap_mode="r")[:count]
        np.save(out, read_preprocess(Bundle.open(work / "run")).normalize(np.ascontiguousarray(pixels)))
    return out


def _test(work: Path, data: Path | None, classes: Path | None) -> tuple[Path | None, Path | None, np.ndarray | None]:
    if data is None:
        return None, None, None
    from vitedge.bundle import Bundle
    from vitedge.data.classes import read_classes
    from vitedge.data.folder import open_dataset
    from vitedge.data.loader import iter_batches
    from vitedge.steps.source import read_preprocess

    preprocess = read_preprocess(Bundle.open(work / "run"))
    dataset = open_dataset(data, classes=read_classes(classes) if classes else None)
    parts = list(iter_batches(dataset, preprocess, 50))
    pixels = np.concatenate([p for p, _ in parts])
    labels = np.asarray(dataset.labels)[np.concatenate([i for _, i in parts])]
    np.save(work / "pixels.npy", pixels)
    np.save(work / "images.npy", preprocess.normalize(pixels))
    return work / "pixels.npy", work / "images.npy", labels.argmax(1) if labels.ndim > 1 else labels
