"""The graphs that TensorRT builds from, executed on the CPU: agreement with FP32 on the same pictures.

    python benchmarks/tensorrt_graphs.py --model ../shared/data/vit_ti_16 --calib ../shared/data/calib \
        --data ../shared/data/val [--int8] [--limit N]

Each graph twice: by ONNX Runtime as it is, which keeps FP32 between most operators, and with each FP16 value
rounded as a device rounds it (`export/float16_emulate.py`). It measures the graphs, not TensorRT.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from vitedge.data.folder import open_dataset
from vitedge.data.sample import load_pixels
from vitedge.export.float16 import FLOAT16_MAX, Float16Options, to_float16
from vitedge.export.float16_emulate import emulate_float16
from vitedge.export.float16_ranges import measure_ranges
from vitedge.export.float16_rescale import scale_stream
from vitedge.export.typed import TypedGraph, typed_graph
from vitedge.export.vit import export_vit
from vitedge.vit.checkpoint import load_model
from vitedge.vit.model import VisionTransformer

RANGE_IMAGES = 64


def logits(model: onnx.ModelProto, pixels: np.ndarray, threads: int) -> np.ndarray:
    """float32 [n, classes] in ONNX Runtime, eight pictures at a time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"pixels": pixels[i : i + 8]})[0] for i in range(0, len(pixels), 8)])


def row(name: str, found: np.ndarray, reference: np.ndarray, labels: np.ndarray) -> str:
    if not np.isfinite(found).all():
        return f"| {name} | - | - | no finite logits |"
    top1, agreement = (found.argmax(1) == labels).mean(), (found.argmax(1) == reference.argmax(1)).mean()
    noise = np.square(found - reference).sum()
    sqnr = f"{10 * np.log10(np.square(reference).sum() / noise):.1f}" if noise else "exact"
    return f"| {name} | {top1:.3f} | {agreement:.3f} | {sqnr} |"


def exported(model: VisionTransformer, loaded) -> onnx.ModelProto:  # type: ignore[no-untyped-def]
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    return export_vit(model.config, weights, loaded.preprocess, batch=None)


def quantized(loaded, calib: np.ndarray) -> onnx.ModelProto:  # type: ignore[no-untyped-def]
    """The conditioned model with Q/DQ as TensorRT wants them."""
    from vitedge.condition import ConditionOptions, condition
    from vitedge.quant import QuantOptions, calibrate
    from vitedge.targets.tensorrt.quantized import place

    pictures = torch.from_numpy(loaded.preprocess.normalize(np.asarray(calib)))
    model, _ = condition(loaded.model, lambda: iter(pictures.split(16)), ConditionOptions())
    scheme = calibrate(model, lambda: iter(pictures.split(16)), QuantOptions(), loaded.preprocess)
    return place(exported(model, loaded), scheme)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--calib-size", type=int, default=256)
    parser.add_argument("--limit", type=int, default=None, help="pictures of --data used")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--int8", action="store_true", help="condition and quantise too (minutes)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    loaded = load_model(given.model)
    scratch = tempfile.TemporaryDirectory()
    prep, classes = loaded.preprocess, loaded.model.config.classes
    calib, _ = load_pixels(open_dataset(given.calib), prep, given.calib_size, 0, Path(scratch.name, "calib.npy"))
    pixels, dataset = load_pixels(open_dataset(given.data), prep, given.limit, 0, Path(scratch.name, "data.npy"))
    labels = dataset.require_labels("Accuracy", classes)
    model = exported(loaded.model, loaded)
    reference = logits(model, pixels, given.threads)
    print(f"{len(pixels)} pictures, {len(calib)} calibration pictures\n")
    print("| graph | top-1 | agreement | SQNR (dB) |\n| --- | --- | --- | --- |")
    print(row("float32", reference, reference, labels))

    def show(name: str, typed: TypedGraph) -> None:
        print(row(f"{name}, ONNX Runtime", logits(typed.model, pixels, given.threads), reference, labels))
        emulated = logits(emulate_float16(typed.model), pixels, given.threads)
        print(row(f"{name}, rounded", emulated, reference, labels), flush=True)
        print(
            f"<!-- {name}: largest FP16 value {typed.largest:.1f} ({typed.largest / FLOAT16_MAX:.3f} of the maximum), "
            f"stream times 2^-{typed.scale.exponent}, {len(typed.kept)} nodes in FP32 -->"
        )

    show("typed FP16", typed_graph(model, calib[:RANGE_IMAGES], threads=given.threads))
    large = scale_stream(model, 1000.0)
    ranges = measure_ranges(large, calib[:RANGE_IMAGES], threads=given.threads)
    naive = to_float16(large, ranges, Float16Options(np.inf, frozenset(), np.inf))
    some = logits(emulate_float16(naive.model), pixels[:8], given.threads)
    print(row("residual x 1000, naive FP16, rounded", some, reference[:8], labels[:8]))
    show("residual x 1000, typed FP16", typed_graph(large, calib[:RANGE_IMAGES], threads=given.threads))
    if given.int8:
        show("INT8 Linears", typed_graph(quantized(loaded, calib), calib[:RANGE_IMAGES], threads=given.threads))


if __name__ == "__main__":
    main()
