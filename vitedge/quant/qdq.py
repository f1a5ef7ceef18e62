"""The scheme written into the float graph as QuantizeLinear / DequantizeLinear pairs, in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitedge.errors import VitedgeError
from vitedge.onnx_graph.editor import GraphEditor, checked
from vitedge.quant.patches import NODES, as_matrix, write_patches
from vitedge.quant.placement import FUSION_FRIENDLY, Placement
from vitedge.quant.scheme import Activation, Scheme, misfit
from vitedge.vit.products import NORMALIZED, PIXELS

if TYPE_CHECKING:
    import onnx


def insert_qdq(model: onnx.ModelProto, scheme: Scheme, placement: Placement = FUSION_FRIENDLY) -> onnx.ModelProto:
    """The float32 graph of the exported ViT, with the scheme's weights, biases and Q/DQ pairs.

    Weights become int8 initialisers behind a DequantizeLinear (per channel). An activation of the scheme gets
    one pair, which all its readers share; where [CLS] is cut out of it first, the pair comes after the cut,
    so that it stands right before the product. Opset 13 or newer.

    Raises VitedgeError where the scheme belongs to another graph, or has zero points that the placement
    forbids.
    """
    check_fit(model, scheme)
    g = GraphEditor(model)
    pixels = "patch_embed" in scheme.weights and PIXELS in scheme.activations
    stem = NORMALIZED in g.makers
    patch = "" if stem else placement.patch if pixels else "float"
    _biases(g, scheme, patch)
    activations = {n: a for n, a in scheme.activations.items() if n != PIXELS}
    renamed: dict[str, str] = {}
    for node in g.take():
        if patch == "matmul" and node.name in NODES:
            if node.name == "patches":
                _patch_matmul(g, scheme, placement)
                _pair(g, "patches", activations.get("patches"), placement, renamed)
            continue
        if patch == "conv" and node.name in NODES[:2]:
            if node.name == "pixels.nchw":
                _patch_input(g)
            continue
        for value in node.input:
            if value.endswith(".weight"):
                _weight(g, value.removesuffix(".weight"), scheme, patch)
        cut = node.op_type == "Slice" and node.input[0] in activations
        for position, value in enumerate(node.input):
            if value in renamed and not cut:
                node.input[position] = renamed[value]
        g.keep(node)
        source = node.input[0] if cut else node.output[0]
        _pair(g, node.output[0], activations.get(source), placement, renamed)
    return checked(g.finish())


def check_fit(model: onnx.ModelProto, scheme: Scheme) -> None:
    """Raises VitedgeError where a weight or a value of the scheme is not in the graph, or has another
    shape."""
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for name, weight in scheme.weights.items():
        shape = shapes.get(f"{name}.weight")
        if shape != weight.values.shape:
            found = "is not there" if shape is None else f"has the shape {shape}, not {weight.values.shape}"
            raise misfit(f"The weight '{name}.weight' {found}.")
    made = {name for node in model.graph.node for name in node.output} | {v.name for v in model.graph.input}
    for name in scheme.activations:
        if name not in made:
            raise misfit(f"There is no value '{name}'.")


def _biases(g: GraphEditor, scheme: Scheme, patch: str) -> None:
    for name, bias in scheme.biases.items():
        if name not in scheme.weights or (name == "patch_embed" and patch == "float"):
            continue
        if g.array(f"{name}.bias") is None:
            raise misfit(f"There is no bias '{name}.bias'.")
        g.constant(f"{name}.bias", bias.astype(np.float32))


def _weight(g: GraphEditor, name: str, scheme: Scheme, patch: str) -> None:
    """The integers of `name` and their DequantizeLinear, whose output takes the initialiser's place."""
    if name in scheme.weights and not (name == "patch_embed" and patch == "float"):
        weight = scheme.weights[name]
        g.write_int8(f"{name}.weight", weight.values, weight.scale, weight.axis)


def _pair(g: GraphEditor, value: str, to: Activation | None, placement: Placement, renamed: dict[str, str]) -> None:
    """QuantizeLinear and DequantizeLinear behind `value`; its readers are to read the second's output."""
    if to is None:
        return
    zero = to.zero_point - (128 if placement.signed else 0)
    if placement.symmetric and zero != 0:
        raise VitedgeError(
            f"'{value}' has the zero point {zero}, which this target does not take.",
            "It multiplies integers without zero points.",
            "Calibrate with symmetric ranges (quantize.symmetric = true).",
        )
    kind = np.int8 if placement.signed else np.uint8
    inputs = [
        g.constant(f"{value}.q.scale", np.array(to.scale, np.float32)),
        g.constant(f"{value}.q.zero", np.array(zero, kind)),
    ]
    g.op("QuantizeLinear", [value, *inputs], f"{value}.q")
    renamed[value] = g.op("DequantizeLinear", [f"{value}.q", *inputs], f"{value}.dq")


def _exact_pixels(g: GraphEditor, x: str, output: str) -> str:
    scale = g.constant("pixels.q.scale", np.array(1, np.float32))
    zero = g.constant("pixels.q.zero", np.array(0, np.uint8))
    return g.op("DequantizeLinear", [x, scale, zero], output)


def _patch_input(g: GraphEditor) -> None:
    """Pixels enter the convolution through a DequantizeLinear of scale 1: exact."""
    x = g.op("Transpose", [PIXELS], "pixels.nchw.uint8", perm=[0, 3, 1, 2])
    _exact_pixels(g, x, "pixels.nchw")


def _patch_matmul(g: GraphEditor, scheme: Scheme, placement: Placement) -> None:
    weight = scheme.weights["patch_embed"]
    x = _exact_pixels(g, write_patches(g, weight.values.shape[-1]), "pixels.patches.dq")
    w = g.write_int8("patch_embed.weight", as_matrix(weight.values), weight.scale)
    x = g.op("MatMul", [x, w], "patch_embed.matmul")
    g.op("Add", [x, "patch_embed.bias"], "patches")
