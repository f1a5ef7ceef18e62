"""Dynamic quantisation: integer weights, activations quantised at run time, as ONNX Runtime runs it fast.

Written as DynamicQuantizeLinear, MatMulInteger, Cast, Mul, Add: standard operators, which ONNX Runtime fuses
into its own. Activations that several products read are quantised once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitedge.onnx_graph.editor import GraphEditor, checked
from vitedge.quant.patches import NODES, as_matrix, write_patches
from vitedge.quant.qdq import check_fit
from vitedge.quant.scheme import Scheme, Weight
from vitedge.vit.products import PIXELS

if TYPE_CHECKING:
    import onnx


def quantize_dynamic(model: onnx.ModelProto, scheme: Scheme) -> onnx.ModelProto:
    """The float32 graph of the exported ViT with the scheme's integer weights and dynamic activations.

    Of the scheme's activations only the names count: what reads others multiplies in float with dequantised
    weights. Raises VitedgeError where the scheme belongs to another graph.
    """
    check_fit(model, scheme)
    g = GraphEditor(model)
    for name, bias in scheme.biases.items():
        g.constant(f"{name}.bias", bias.astype(np.float32))
    origin = {n.output[0]: n.input[0] for n in g.nodes if n.op_type == "Slice"}
    quantized: dict[str, list[str]] = {}
    patch = "patch_embed" in scheme.weights
    for node in g.take():
        if patch and node.name in NODES:
            if node.name == "patches":
                _patches(g, scheme.weights["patch_embed"])
            continue
        name = node.name.removesuffix(".matmul")
        if node.op_type != "MatMul" or name not in scheme.weights:
            g.keep(node)
            continue
        source, weight = node.input[0], scheme.weights[name]
        if origin.get(source, source) in scheme.activations:
            _product(g, node, name, weight, quantized)
        else:
            g.write_int8(f"{name}.weight", weight.values, weight.scale, weight.axis)
            g.keep(node)
    return checked(g.finish())


def _product(g: GraphEditor, node: onnx.NodeProto, name: str, weight: Weight, quantized: dict[str, list[str]]) -> None:
    source = node.input[0]
    if source not in quantized:
        outputs = [f"{source}.q", f"{source}.q.scale", f"{source}.q.zero"]
        g.op("DynamicQuantizeLinear", [source], outputs)
        quantized[source] = outputs
    x, scale, zero = quantized[source]
    w = g.constant(f"{name}.weight.int8", weight.values)
    w_scale = g.constant(f"{name}.weight.scale", weight.scale.astype(np.float32))
    w_zero = g.constant(f"{name}.weight.zero", np.zeros(len(weight.scale), np.int8))
    product = g.op("MatMulInteger", [x, w, zero, w_zero], f"{name}.integer")
    product = g.op("Cast", [product], f"{name}.float", to=1)
    factor = g.op("Mul", [scale, w_scale], f"{name}.scale")
    g.op("Mul", [product, factor], node.output[0])


def _patches(g: GraphEditor, weight: Weight) -> None:
    """Pixels are integers already: scale 1, zero point 0, nothing to find out at run time."""
    x = write_patches(g, weight.values.shape[-1])
    w = g.constant("patch_embed.weight.int8", as_matrix(weight.values))
    zero = g.constant(f"{PIXELS}.q.zero", np.array(0, np.uint8))
    w_scale = g.constant("patch_embed.weight.scale", weight.scale.astype(np.float32))
    w_zero = g.constant("patch_embed.weight.zero", np.zeros(len(weight.scale), np.int8))
    product = g.op("MatMulInteger", [x, w, zero, w_zero], "patch_embed.integer")
    product = g.op("Cast", [product], "patch_embed.float", to=1)
    product = g.op("Mul", [product, w_scale], "patch_embed.matmul")
    g.op("Add", [product, "patch_embed.bias"], "patches")
