"""A convolutional stem as operators: see `vit.stem`."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitedge.data.preprocess import Preprocess
from vitedge.export.activations import ACTIVATIONS
from vitedge.onnx_graph.builder import GraphBuilder
from vitedge.vit.config import ViTConfig
from vitedge.vit.products import NORMALIZED
from vitedge.vit.stem import LAST, Placed

Weights = dict[str, np.ndarray]


def convolution(
    g: GraphBuilder,
    x: str,
    name: str,
    weight: np.ndarray,
    bias: np.ndarray,
    stride: int,
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    *,
    groups: int = 1,
    result: str = "",
) -> str:
    """[N, in, H, W] -> [N, out, rows, columns]; `name`: of its initialisers, and of the result where it has none."""
    more: dict[str, Any] = {"pads": list(pads)} if any(pads) else {}
    more |= {"group": groups} if groups > 1 else {}
    inputs = [x, g.constant(f"{name}.weight", weight), g.constant(f"{name}.bias", bias)]
    return g.op("Conv", inputs, result or name, kernel_shape=list(weight.shape[2:]), strides=[stride, stride], **more)


def export_stem(
    g: GraphBuilder, config: ViTConfig, w: Weights, preprocess: Preprocess, x: str, batch: int | None
) -> str:
    """Raw pixels [N, C, H, W] in float -> what the patch embedding gives [N, width, rows, columns].

    The normalisation has operators of its own: the zeros around an image are zeros of normalised pixels, so that it
    can't go into the first convolution.
    """
    assert config.stem is not None
    mean, std = (np.asarray(v, np.float64)[:, None, None] for v in (preprocess.mean, preprocess.std))
    x = g.op("Mul", [x, g.constant("pixels.scale", (1 / (255 * std)).astype(np.float32))], "pixels.scaled")
    x = g.op("Add", [x, g.constant("pixels.shift", (-mean / std).astype(np.float32))], NORMALIZED)
    for index, placed in enumerate(config.stem_layers()):
        key = LAST if placed.layer.name == LAST else f"stem.layers.{index}.conv"
        x = _layer(g, placed, config.stem.norm_eps, w, key, batch or -1)
    return x


def _layer(g: GraphBuilder, placed: Placed, eps: float, w: Weights, key: str, n: int) -> str:
    layer = placed.layer
    name, x = layer.unit, placed.source.value if placed.source else NORMALIZED
    window: dict[str, Any] = {"kernel_shape": [layer.kernel] * 2, "strides": [layer.stride] * 2}
    if layer.op == "conv":
        x = convolution(g, x, name, w[f"{key}.weight"], w[f"{key}.bias"], layer.stride, placed.pads)
    elif layer.op == "max":
        x = g.op("MaxPool", [x], name, pads=list(placed.pads), **window)
    else:
        x = g.op("AveragePool", [x], name, **window)
    if layer.groups:
        last = f"{name}.norm" if layer.plus or layer.act else layer.value
        affine = [w[f"{key.removesuffix('.conv')}.norm.{kind}"] for kind in ("weight", "bias")]
        x = _group_norm(g, placed, eps, affine, x, last, n)
    if placed.plus:
        x = g.op("Add", [x, placed.plus.value], f"{name}.sum" if layer.act else layer.value)
    return ACTIVATIONS[layer.act](g, x, layer.value) if layer.act else x


def _group_norm(
    g: GraphBuilder, placed: Placed, eps: float, affine: list[np.ndarray], x: str, last: str, n: int
) -> str:
    """GroupNorm as InstanceNormalization of groups: opset 18's own operator has no channels in its affine part, and
    compilers don't have it."""
    layer, name = placed.layer, f"{placed.layer.unit}.norm"
    ones, zeros = (np.full(layer.groups, v, np.float32) for v in (1, 0))
    size = layer.channels // layer.groups * placed.size[0] * placed.size[1]
    x = g.op("Reshape", [x, g.shape(n, layer.groups, size)], f"{name}.split")
    constants = [
        g.constant(f"group_norm.one_{layer.groups}", ones),
        g.constant(f"group_norm.zero_{layer.groups}", zeros),
    ]
    x = g.op("InstanceNormalization", [x, *constants], f"{name}.unit", epsilon=eps)
    x = g.op("Reshape", [x, g.shape(n, layer.channels, *placed.size)], f"{name}.joined")
    scale, bias = (values[:, None, None] for values in affine)
    x = g.op("Mul", [x, g.constant(f"{name}.scale", scale)], f"{name}.scaled")
    return g.op("Add", [x, g.constant(f"{name}.bias", bias)], last)
