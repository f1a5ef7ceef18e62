"""Accuracy of INT8 on ONNX Runtime, ours against its own quantiser, on the same images.

    python benchmarks/quantization.py --model ../shared/data/vit_ti_16 --calib ../shared/data/calib \
        --data ../shared/data/val

Prints a Markdown table: top-1, agreement with FP32, SQNR of the logits, size against FP32, share of INT8 MACs,
seconds that conditioning and calibration took. `--only NAME` takes some of the rows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from accuracy import arguments, header, load

from vitedge.condition import ConditionOptions, condition
from vitedge.quant import QuantOptions, calibrate, insert_qdq, quantize_dynamic, round_weights
from vitedge.targets.onnxruntime.rewrites import Form, apply
from vitedge.vit.model import VisionTransformer

# Row -> (conditioning, quantisation); None for dynamic.
ROWS: dict[str, tuple[ConditionOptions, QuantOptions | None]] = {
    "static linear": (ConditionOptions(), QuantOptions()),
    "static linear, 6 % of MACs spared": (ConditionOptions(), QuantOptions(spare=0.06)),
    "static full": (ConditionOptions(massive=4.0), QuantOptions(preset="full", observer="mse")),
    "static full, --max-drop 0.5": (ConditionOptions(massive=1.0), QuantOptions(preset="full", max_drop=0.5)),
    "dynamic": (ConditionOptions(), None),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", action="append", help="name of a row; several may be given")
    parser.add_argument("--others", action="store_true", help="ONNX Runtime's own quantiser too")
    given = parser.parse_args()
    case = load(given)
    prep, calib = case.loaded.preprocess, case.calib

    def batches() -> Iterator[torch.Tensor]:
        return (torch.from_numpy(prep.normalize(calib[i : i + 16])) for i in range(0, len(calib), 16))

    plain = case.exported(case.loaded.model)
    reference = case.logits(plain)
    size = len(plain.SerializeToString())
    print(header("size", "INT8 MACs", "seconds"))
    print(case.row("FP32", reference, reference, "1", "0", ""), flush=True)
    ready: dict[ConditionOptions, VisionTransformer] = {}
    for name, (how, quant) in ROWS.items():
        if given.only and name not in given.only:
            continue
        start = time.perf_counter()
        if how not in ready:
            ready[how] = condition(case.loaded.model, batches, how)[0]
        model = ready[how]
        if quant is None:
            scheme = round_weights(model, batches, None, prep)
            graph = quantize_dynamic(case.exported(model), scheme)
        else:
            scheme = calibrate(model, batches, quant, prep)
            graph = insert_qdq(case.exported(model), scheme)
        seconds = time.perf_counter() - start
        built = apply(graph, Form())[0].SerializeToString()
        facts = (f"{len(built) / size:.3f}", f"{scheme.facts['int8_macs']:.3f}", f"{seconds:.0f}")
        print(case.row(name, case.logits(built), reference, *facts), flush=True)
    if given.others:
        for name, graph in others(plain, calib):
            logits, share = case.logits(graph, ours=False), f"{len(graph) / size:.3f}"
            print(case.row(name, logits, reference, share, "", ""), flush=True)


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
