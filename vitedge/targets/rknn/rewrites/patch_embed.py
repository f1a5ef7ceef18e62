"""The patch embedding as convolutions whose strides the NPU has (1 to 7).

    Conv p x p, stride p    becomes    Conv s x s, stride s, one-hot (space to depth); Conv p/s x p/s, stride p/s

A convolution with stride 16 is compiled as one with a small stride, of whose 53 x 53 outputs every fourth is taken:
half of a ViT-B/16's cycles. The first convolution of the two only moves pixels into channels, so its INT8 is exact,
and the second holds the same weights, rearranged. A patch of 32 takes three (2, 4, 4). Exact.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnx

from vitedge.onnx_graph.editor import GraphEditor
from vitedge.onnx_graph.matcher import attribute

MAX_STRIDE = 7


@lru_cache
def strides(patch: int) -> tuple[int, ...] | None:
    """The strides whose product is `patch`, each at most 7: as few as possible, the first as small as possible.

    None where there are none (a prime factor above 7).
    """
    if patch <= MAX_STRIDE:
        return (patch,)
    found = [
        (s, *rest) for s in range(2, MAX_STRIDE + 1) if patch % s == 0 and (rest := strides(patch // s)) is not None
    ]
    # 16 as 4 x 4, not 2 x ... : cheaper, since the last convolution is then over fewer positions.
    return min(found, key=lambda f: (len(f), max(f), f), default=None)


def space_to_depth(channels: int, s: int) -> np.ndarray:
    """One-hot weights [channels * s * s, channels, s, s]: output channel (c, i, j) is input c at offset (i, j)."""
    return np.eye(channels * s * s, dtype=np.float32).reshape(channels * s * s, channels, s, s)


def rearrange(weight: np.ndarray, s: int) -> np.ndarray:
    """[O, C, p, p] -> [O, C * s * s, p / s, p / s], for an input that went through `space_to_depth(C, s)`."""
    out, channels, p, _ = weight.shape
    k = p // s
    split = weight.reshape(out, channels, k, s, k, s).transpose(0, 1, 3, 5, 2, 4)
    return np.ascontiguousarray(split.reshape(out, channels * s * s, k, k))


def rewrite(g: GraphEditor) -> int:
    """Rewrites each convolution whose stride equals its kernel and is above 7; returns how many there were."""
    count = 0
    for node in g.take():
        steps = _steps(node)
        if steps is None:
            g.keep(node)
            continue
        weight = g.array(node.input[1])
        assert weight is not None
        x, result = node.input[0], node.output[0]
        for number, s in enumerate(steps[:-1]):
            name = f"{result}.space_to_depth{number}"
            onehot = g.constant(f"{name}.weight", space_to_depth(weight.shape[1], s))
            x, weight = _conv(g, [x, onehot], name, s), rearrange(weight, s)
        _conv(g, [x, g.constant(f"{result}.weight.rearranged", weight), *node.input[2:]], result, steps[-1])
        count += 1
    return count


def _steps(node: onnx.NodeProto) -> tuple[int, ...] | None:
    if node.op_type != "Conv" or any(attribute(node, "pads", [])):
        return None
    kernel, stride = attribute(node, "kernel_shape"), attribute(node, "strides")
    if kernel != stride or not kernel or kernel[0] != kernel[-1] or kernel[0] <= MAX_STRIDE:
        return None
    return strides(kernel[0])


def _conv(g: GraphEditor, inputs: list[str], result: str, s: int) -> str:
    return g.op("Conv", inputs, result, kernel_shape=[s, s], strides=[s, s])
