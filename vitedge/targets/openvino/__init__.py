"""OpenVINO on a CPU: x86-64 PCs and Intel boards."""

from vitedge.targets.openvino.target import OpenVINOTarget

TARGET = OpenVINOTarget()
