"""Q/DQ where TensorRT wants them, from the bundle's scheme: INT8 Linears, FP16 attention.

TensorRT's rules (its guide, "Working with Quantized Types"): signed integers, zero point 0; one scale for an
activation, one an output channel for a weight; Q/DQ on both factors of a product and nowhere else, so that
each pair is absorbed into its kernel. Integer weights are stored as such, with DequantizeLinear alone.

The scheme's zero points are kept all the same: x is shifted by a constant before it is quantised, and the
product of the weights with that constant goes into the bias. So q' = q - 128 is what any other target
computes, and GELU's one-sided output keeps its eighth bit. The shift is pointwise, in the kernel that
quantises.

Left in FP16: the patch embedding, whose uint8 pixels fit no signed integer at scale 1; products on [CLS]
alone, which are memory-bound and win nothing; attention, whose fused kernel is what INT8 would break. INT8
attention is placed where asked for and where NVIDIA's kernels take the head size and the length.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from vitedge.errors import VitedgeError
from vitedge.onnx_graph.editor import GraphEditor, checked
from vitedge.onnx_graph.matcher import Graph, value_shapes
from vitedge.quant.placement import Placement
from vitedge.quant.qdq import insert_qdq
from vitedge.quant.scheme import Activation, Scheme, misfit
from vitedge.targets.base import BuildRequest
from vitedge.targets.tensorrt.check import fusable

if TYPE_CHECKING:
    import onnx


_FLOAT_INPUT = "the scheme keeps its input in float"


def insert_quantizers(request: BuildRequest, model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, object]]:
    """The float32 graph with Q/DQ by the scheme in `request.quant`, and what was quantised (JSON-able)."""
    if request.quant is None:
        raise VitedgeError(
            "The run has no quantisation scheme, which an INT8 engine is built from.",
            "It was compressed without quantisation.",
            "Run `vitedge compress --quantize static` first.",
        )
    scheme = Scheme.load(request.quant)
    if scheme.preset == "dynamic":
        raise VitedgeError(
            "TensorRT has no dynamic quantisation.",
            "The run was compressed with --quantize dynamic, whose scales are found at run time.",
            "Run `vitedge compress --quantize static`, or build with --precision fp16.",
        )
    return place(model, scheme, attention=request.options.int8_attention)


def place(
    model: onnx.ModelProto, scheme: Scheme, *, attention: bool = False
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """The graph with Q/DQ, and {"linears": names, "attention": names, "float": {name: reason}}."""
    shapes = value_shapes(model)
    left = {
        u: r for node in model.graph.node if (u := _unit(node, scheme)) and (r := _why_float(node, u, scheme, shapes))
    }
    linears = [u for node in model.graph.node if (u := _unit(node, scheme)) and u not in left]
    if not linears:
        raise misfit(f"None of its {len(scheme.weights)} matrices stands in the graph as it was quantised.")
    beside = {unit for unit, reason in left.items() if reason == _FLOAT_INPUT}
    shifted, activations = _shift(model, scheme, set(linears), beside)
    fused: list[str] = []
    if attention:
        g = Graph(model)
        for node in g.nodes:
            if node.op_type == "Softmax":
                factors, reason = _factors(g, node, scheme, shapes)
                activations |= factors
                if reason:
                    left[node.name] = reason
                else:
                    fused.append(node.name)
    weights = {name: scheme.weights[name] for name in linears}
    ours = replace(scheme, activations=activations, weights=weights, biases={})
    placed = insert_qdq(shifted, ours, Placement(signed=True, symmetric=True, patch="float"))
    return placed, {"linears": linears, "attention": fused, "float": left}


def shift_of(activation: Activation) -> float:
    """What is taken from a value so that its zero point becomes 0 in signed integers."""
    return activation.scale * (2 ** (activation.bits - 1) - activation.zero_point)


def symmetric_scale(activation: Activation) -> float:
    """The scale with which signed 8 bits reach as far as `activation` does."""
    low, high = activation.range
    return max(-low, high) / 127


def _unit(node: onnx.NodeProto, scheme: Scheme) -> str:
    """The name of the scheme's matrix that `node` multiplies by, or an empty string."""
    name = node.input[1].removesuffix(".weight") if node.op_type in ("MatMul", "Conv") else ""
    return name if name in scheme.weights else ""


def _why_float(node: onnx.NodeProto, unit: str, scheme: Scheme, shapes: dict[str, tuple[int, ...]]) -> str:
    if node.op_type == "Conv" and node.input[0] == "pixels.nchw":
        return "uint8 pixels don't fit signed integers at scale 1"
    if node.op_type == "Conv":
        return "the zeros around its input would be shifted too"
    shape = shapes.get(node.input[0], ())
    if len(shape) < 3 or shape[-2] == 1:
        return "a product on [CLS] alone is memory-bound"
    return "" if node.input[0] in scheme.activations else _FLOAT_INPUT


def _shift(
    model: onnx.ModelProto, scheme: Scheme, linears: set[str], beside: set[str]
) -> tuple[onnx.ModelProto, dict[str, Activation]]:
    """The graph whose quantised Linears read shifted values and whose biases take the shift back, and the
    shifted values' scales.

    beside: Linears that read floats by the scheme, such as small groups of large MLP units. They keep its
        weights, as numbers, and its bias: the other groups of the same layer were fitted beside these.
    """
    g = GraphEditor(model)
    activations: dict[str, Activation] = {}
    biases = {name: scheme.biases[name] for name in linears | beside if name in scheme.biases}
    for node in g.take():
        unit = _unit(node, scheme)
        if unit in linears:
            value = node.input[0]
            found = scheme.activations[value]
            name = f"{value}.shifted"
            if name not in activations:
                shift = g.constant(f"{value}.shift", np.float32(shift_of(found)))
                g.op("Sub", [value, shift], name)
                activations[name] = Activation(found.scale, 2 ** (found.bits - 1), found.bits)
            node.input[0] = name
            weight = scheme.weights[unit]
            axes = tuple(axis for axis in range(weight.values.ndim) if axis != weight.axis)
            target = _bias_owner(g, unit)
            base = biases[target] if target in biases else g.array(f"{target}.bias")
            assert base is not None
            biases[target] = base + weight.dequantize().sum(axes, np.float64) * shift_of(found)
        elif unit in beside:
            g.constant(f"{unit}.weight", scheme.weights[unit].dequantize())
        g.keep(node)
    for name, bias in biases.items():
        g.constant(f"{name}.bias", bias.astype(np.float32))
    return checked(g.finish()), activations


def _bias_owner(g: GraphEditor, unit: str) -> str:
    """Whose bias is added to the product `unit`: its own, or that of the first of its groups."""
    return unit if g.array(f"{unit}.bias") is not None else f"{unit.rpartition('.')[0]}.0"


def _factors(
    g: Graph, softmax: onnx.NodeProto, scheme: Scheme, shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, Activation], str]:
    """The scales of an attention's four factors, by the values that its products read; or why it stays FP16."""
    first, second = g.makers[softmax.input[0]], g.readers[softmax.output[0]][0]
    name = softmax.name.rpartition(".")[0]
    if first.op_type == "Add":  # the sizes of merged tokens, or the places within a window
        first = g.makers[first.input[0]]
    if first.op_type != "MatMul":
        return {}, "its one query is the same for all images"
    factors = {first.input[0]: "q", first.input[1]: "k", second.input[0]: "probs", second.input[1]: "v"}
    if missing := [part for part in factors.values() if f"{name}.{part}" not in scheme.activations]:
        return {}, f"the scheme has no scale for {', '.join(missing)}: quantise with the preset 'full'"
    query, value = shapes[first.input[0]], shapes[second.input[1]]
    if query[-2] == 1:
        return {}, "a product on [CLS] alone is memory-bound"
    for size in (query[-1], value[-1]):
        if reason := fusable(size, value[-2], int8=True):
            return {}, reason
    scales = {n: symmetric_scale(scheme.activations[f"{name}.{part}"]) for n, part in factors.items()}
    return {n: Activation(scale, 128) for n, scale in scales.items()}, ""
