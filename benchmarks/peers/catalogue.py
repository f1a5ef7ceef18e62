"""Who is compared: each tool with its environment, how its artifact is made, and what runs it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One row of the comparison.

    Attributes:
        name: as the table shows it.
        environment: of `ENVIRONMENTS`, which converts and runs it; "vitedge" is the one that runs the benchmark.
        recipe: the function of `convert.py` that makes the artifact; empty for what runs the source itself.
        kind: how `worker.py` runs it: torch, compile, onnxruntime, openvino-f32, openvino, vitedge.
        ours: whether it is vitedge's.
        precision: as the table shows it.
    """

    name: str
    environment: str
    recipe: str
    kind: str
    precision: str
    ours: bool = False


# Environment -> what pip installs into it. Each tool pins others of its own.
ENVIRONMENTS: dict[str, list[str]] = {
    "openvino": ["openvino", "nncf", "onnx", "numpy"],
    "optimum": ["optimum[onnxruntime]", "datasets", "torch", "torchvision", "onnx", "numpy"],
    # onnx-neural-compressor 1.0 forgets to name what stands in the second line.
    "neural-compressor": [
        *("onnx-neural-compressor", "onnx", "onnxruntime", "numpy", "setuptools<81"),
        *("prettytable", "psutil", "py-cpuinfo", "pydantic", "scipy"),
    ],
    "plot": ["matplotlib"],
}

ENTRIES = [
    Entry("PyTorch eager", "vitedge", "", "torch", "FP32"),
    Entry("PyTorch torch.compile", "vitedge", "", "compile", "FP32"),
    Entry("ONNX Runtime, plain export", "vitedge", "plain", "onnxruntime", "FP32"),
    Entry("OpenVINO, plain export", "openvino", "plain", "openvino-f32", "FP32"),
    Entry("OpenVINO, plain export", "openvino", "plain", "openvino", "BF16"),
    Entry("ONNX Runtime quantize_dynamic", "vitedge", "ort_dynamic", "onnxruntime", "INT8"),
    Entry("ONNX Runtime quantize_static, defaults", "vitedge", "ort_static", "onnxruntime", "INT8"),
    Entry("ONNX Runtime quantize_static, MatMul U8S8", "vitedge", "ort_static_matmul", "onnxruntime", "INT8"),
    Entry("Optimum, ONNX Runtime, avx512_vnni static", "optimum", "optimum_static", "onnxruntime", "INT8"),
    Entry("Neural Compressor, static", "neural-compressor", "inc_static", "onnxruntime", "INT8"),
    Entry("OpenVINO, NNCF defaults", "openvino", "nncf_default", "openvino", "INT8"),
    Entry("OpenVINO, NNCF TRANSFORMER", "openvino", "nncf_transformer", "openvino", "INT8"),
    Entry("vitedge, ONNX Runtime", "vitedge", "onnxruntime-fp32", "vitedge", "FP32", ours=True),
    Entry("vitedge, OpenVINO", "vitedge", "openvino-bf16", "vitedge", "BF16", ours=True),
    Entry("vitedge, ONNX Runtime", "vitedge", "onnxruntime-int8", "vitedge", "INT8", ours=True),
    Entry("vitedge, OpenVINO", "vitedge", "openvino-int8", "vitedge", "INT8", ours=True),
    Entry("vitedge --prune 0.3, ONNX Runtime", "vitedge", "pruned/onnxruntime-int8", "vitedge", "INT8", ours=True),
    Entry("vitedge --prune 0.3, OpenVINO", "vitedge", "pruned/openvino-int8", "vitedge", "INT8", ours=True),
]
