"""ONNX Runtime on a CPU: x86-64 and aarch64, PCs and boards."""

from vitedge.targets.onnxruntime.target import OnnxRuntimeTarget

TARGET = OnnxRuntimeTarget()
