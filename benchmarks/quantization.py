"""Accuracy of INT8 on ONNX Runtime, ours against its own quantiser, on the same pictures.

    python benchmarks/quantization.py --model ../shared/data/vit_ti_16 --calib ../shared/data/calib \
        --data ../shared/data/val

Prints a Markdown table: top-1, agreement with FP32, SQNR of the logits, size against FP32, share of INT8 MACs,
seconds that conditioning and calibration took. `--only NAME` takes some of the rows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from vitedge.condition import ConditionOptions, condition
from vitedge.data.folder import open_dataset
from vitedge.data.sample import load_pixels
from vitedge.export.vit import export_vit
from vitedge.quant import QuantOptions, calibrate, insert_qdq, quantize_dynamic, round_weights
from vitedge.vit.checkpoint import load_model
from vitedge.vit.model import VisionTransformer

# Row -> (conditioning, quantisation); None for dynamic.
ROWS: dict[str, tuple[ConditionOptions, QuantOptions | None]] = {
    "static linear": (ConditionOptions(), QuantOptions()),
    "static linear, 6 % of MACs spared": (ConditionOptions(), QuantOptions(spare=0.06)),
    "static full": (ConditionOptions(massive=4.0), QuantOptions(preset="full", observer="mse")),
    "static full, --max-drop 0.5": (ConditionOptions(massive=1.0), QuantOptions(preset="full", max_drop=0.5)),
    "dynamic": (ConditionOptions(), None),
}


class Measured:
    """Logits of a graph on the data, one picture after another, as the board runs it."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, threads: int) -> None:
        self.pixels, self.labels, self.threads = pixels, labels, threads

    def logits(self, graph: bytes) -> np.ndarray:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, {"pixels": p[None]})[0] for p in self.pixels])

    def row(self, name: str, logits: np.ndarray, reference: np.ndarray, *facts: str) -> str:
        top1 = (logits.argmax(1) == self.labels).mean()
        agreement = (logits.argmax(1) == reference.argmax(1)).mean()
        noise = np.mean((logits - reference) ** 2)
        sqnr = 10 * np.log10(reference.var() / noise) if noise else float("inf")
        return f"| {name} | {top1:.3f} | {agreement:.3f} | {sqnr:.1f} | " + " | ".join(facts) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--calib-size", type=int, default=256)
    parser.add_argument("--limit", type=int, default=None, help="pictures of --data used")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", action="append", help="name of a row; several may be given")
    parser.add_argument("--others", action="store_true", help="ONNX Runtime's own quantiser too")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    loaded = load_model(given.model)
    prep = loaded.preprocess
    scratch = tempfile.TemporaryDirectory()
    calib, _ = load_pixels(open_dataset(given.calib), prep, given.calib_size, 0, Path(scratch.name, "calib.npy"))
    pixels, dataset = load_pixels(open_dataset(given.data), prep, given.limit, 0, Path(scratch.name, "data.npy"))
    measured = Measured(pixels, dataset.require_labels("Accuracy", loaded.model.config.classes), given.threads)

    def batches() -> Iterator[torch.Tensor]:
        return (torch.from_numpy(prep.normalize(calib[i : i + 16])) for i in range(0, len(calib), 16))

    def exported(model: VisionTransformer) -> onnx.ModelProto:
        return export_vit(model.config, {k: v.numpy() for k, v in model.state_dict().items()}, prep)

    plain = exported(loaded.model)
    reference = measured.logits(plain.SerializeToString())
    size = len(plain.SerializeToString())
    print(f"{len(pixels)} pictures, {len(calib)} calibration pictures, onnxruntime {onnxruntime.__version__}\n")
    print("| | top-1 | agreement | logit SQNR, dB | size | INT8 MACs | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(measured.row("FP32", reference, reference, "1", "0", ""), flush=True)
    ready: dict[ConditionOptions, VisionTransformer] = {}
    for name, (how, quant) in ROWS.items():
        if given.only and name not in given.only:
            continue
        start = time.perf_counter()
        if how not in ready:
            ready[how] = condition(loaded.model, batches, how)[0]
        model = ready[how]
        if quant is None:
            scheme = round_weights(model, batches, None, prep)
            graph = quantize_dynamic(exported(model), scheme).SerializeToString()
        else:
            scheme = calibrate(model, batches, quant, prep)
            graph = insert_qdq(exported(model), scheme).SerializeToString()
        seconds = time.perf_counter() - start
        facts = (f"{len(graph) / size:.3f}", f"{scheme.facts['int8_macs']:.3f}", f"{seconds:.0f}")
        print(measured.row(name, measured.logits(graph), reference, *facts), flush=True)
    if given.others:
        for name, graph in others(plain, calib):
            print(measured.row(name, measured.logits(graph), reference, f"{len(graph) / size:.3f}", "", ""), flush=True)


def others(plain: onnx.ModelProto, calib: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """ONNX Runtime's own static (defaults) and dynamic (per channel) quantisation of the same float graph."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.items = iter([{"pixels": p[None]} for p in calib[:64]])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.items, None)

    def made(make: Callable[[str, str], None]) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            source, target = f"{folder}/a.onnx", f"{folder}/b.onnx"
            onnx.save(plain, source)
            make(source, target)
            return Path(target).read_bytes()

    yield "ONNX Runtime, static, defaults", made(lambda a, b: quantize_static(a, b, Reader()))
    yield "ONNX Runtime, dynamic, per channel", made(lambda a, b: quantize_dynamic(a, b, per_channel=True))


if __name__ == "__main__":
    main()
