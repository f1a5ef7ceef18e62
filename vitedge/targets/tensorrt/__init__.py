"""NVIDIA TensorRT: Jetsons and PCs with an NVIDIA GPU. Not yet run on hardware."""

from vitedge.targets.tensorrt.target import TensorRTTarget

TARGET = TensorRTTarget()
