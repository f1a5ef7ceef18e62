"""The graphs that TensorRT builds from, executed on the CPU: agreement with FP32 on the same images.

    python benchmarks/tensorrt_graphs.py --model ../shared/data/vit_ti_16 --calib ../shared/data/calib \
        --data ../shared/data/val [--int8] [--limit N]

Each graph twice: by ONNX Runtime as it is, which keeps FP32 between most operators, and with each FP16 value
rounded as a device rounds it (`export/float16_emulate.py`). It measures the graphs, not TensorRT.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import torch
from accuracy import Case, arguments, header, load

from vitedge.export.float16 import FLOAT16_MAX, Float16Options, to_float16
from vitedge.export.float16_emulate import emulate_float16
from vitedge.export.float16_rescale import scale_stream
from vitedge.export.typed import TypedGraph, typed_graph
from vitedge.onnx_graph.ranges import measure_ranges

RANGE_IMAGES = 64


def quantized(case: Case) -> onnx.ModelProto:
    """The conditioned model with Q/DQ as TensorRT wants them."""
    from vitedge.condition import ConditionOptions, condition
    from vitedge.quant import QuantOptions, calibrate
    from vitedge.targets.tensorrt.quantized import place

    loaded = case.loaded
    images = torch.from_numpy(loaded.preprocess.normalize(case.calib))
    model, _ = condition(loaded.model, lambda: iter(images.split(16)), ConditionOptions())
    scheme = calibrate(model, lambda: iter(images.split(16)), QuantOptions(), loaded.preprocess)
    return place(case.exported(model, None), scheme)[0]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--int8", action="store_true", help="condition and quantise too (minutes)")
    given = parser.parse_args()
    case = load(given)
    calib = case.calib[:RANGE_IMAGES]
    model = case.exported(case.loaded.model, None)
    reference = case.logits(model)
    print(header())
    print(case.row("float32", reference, reference))

    def show(name: str, typed: TypedGraph) -> None:
        print(case.row(f"{name}, ONNX Runtime", case.logits(typed.model), reference))
        print(case.row(f"{name}, rounded", case.logits(emulate_float16(typed.model)), reference), flush=True)
        print(
            f"<!-- {name}: largest FP16 value {typed.largest:.1f} ({typed.largest / FLOAT16_MAX:.3f} of the maximum), "
            f"stream times 2^-{typed.scale.exponent}, {len(typed.kept)} nodes in FP32 -->"
        )

    show("typed FP16", typed_graph(model, calib, threads=given.threads))
    large = scale_stream(model, 1000.0)
    ranges = measure_ranges(large, calib, threads=given.threads)
    naive = to_float16(large, ranges, Float16Options(np.inf, frozenset(), np.inf))
    some = replace(case, pixels=case.pixels[:8]).logits(emulate_float16(naive.model))
    print(case.row("residual x 1000, naive FP16, rounded", some, reference[:8]))
    show("residual x 1000, typed FP16", typed_graph(large, calib, threads=given.threads))
    if given.int8:
        show("INT8 Linears", typed_graph(quantized(case), calib, threads=given.threads))


if __name__ == "__main__":
    main()
