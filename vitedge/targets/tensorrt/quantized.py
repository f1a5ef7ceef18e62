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

from typing import TYPE_CHECKING, Any

import numpy as np

from vitedge.errors import VitedgeError
from vitedge.targets.base import BuildRequest
from vitedge.targets.tensorrt.check import fusable

if TYPE_CHECKING:
    import onnx

    from vitedge.quant.scheme import Activation, Scheme


def insert_quantizers(request: BuildRequest, model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The float32 graph with Q/DQ by the scheme in `request.quant`, and what was quantised (JSON-able)."""
    from vitedge.quant.scheme import Scheme

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


def shift_of(activation: Activation) -> float:
    """What is taken from a value so that its zero point becomes 0 in signed integers."""
    return activation.scale * (2 ** (activation.bits - 1) - activation.zero_point)


def symmetric_scale(activation: Activation) -> float:
    """The scale with which signed 8 bits reach as far as `activation` does."""
    low, high = activation.range
    return max(-low, high) / 127


def place(model: onnx.ModelProto, scheme: Scheme, *, attention: bool = False) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The graph with Q/DQ, and {"linears": names, "attention": names, "float": {name: reason}}."""
    editor = _Editor(model)
    linears: list[str] = []
    products: list[str] = []
    left: dict[str, str] = {}
    biases: dict[str, np.ndarray] = {}
    shifts: list[tuple[str, np.ndarray]] = []
    for node in list(editor.model.graph.node):
        unit = node.input[1].removesuffix(".weight") if len(node.input) > 1 else ""
        if node.op_type in ("MatMul", "Conv") and unit in scheme.weights:
            activation = scheme.activations.get(editor.origin(node.input[0]))
            if reason := _why_float(editor, node, activation):
                left[unit] = reason
                continue
            assert activation is not None
            weight = scheme.weights[unit]
            shift = shift_of(activation)
            node.input[0] = editor.quantized(node.input[0], activation.scale, shift)
            node.input[1] = editor.weight(node.input[1], weight.values, weight.scale, weight.axis)
            if unit in scheme.biases and f"{unit}.bias" in editor.constants:
                biases[f"{unit}.bias"] = scheme.biases[unit]
            if shift:
                axes = tuple(axis for axis in range(weight.values.ndim) if axis != weight.axis)
                shifts.append((_bias_name(editor, unit), weight.dequantize().sum(axes, np.float64) * shift))
            linears.append(unit)
        elif node.op_type == "Softmax" and attention:
            if reason := _attention(editor, node, scheme):
                left[node.name] = reason
            else:
                products.append(node.name)
    if not linears:
        raise VitedgeError(
            "The quantisation scheme does not belong to this graph.",
            f"None of its {len(scheme.weights)} matrices stands in the graph as it was quantised.",
            "Run `vitedge compress --quantize static` again.",
        )
    for name, added in shifts:
        biases[name] = biases.get(name, editor.array(name)) + added
    for name, bias in biases.items():
        editor.replace(name, bias)
    return editor.finish(), {"linears": linears, "attention": products, "float": left}


def _why_float(editor: _Editor, node: onnx.NodeProto, activation: Activation | None) -> str:
    if node.op_type == "Conv":
        return "uint8 pixels don't fit signed integers at scale 1"
    shape = editor.shapes.get(node.input[0], [])
    if len(shape) < 3 or shape[-2] == 1:
        return "a product on [CLS] alone is memory-bound"
    return "" if activation is not None else "the scheme keeps its input in float"


def _bias_name(editor: _Editor, unit: str) -> str:
    """The bias that is added to the product `unit`: its own, or that of the first of its groups."""
    own, first = f"{unit}.bias", f"{unit.rpartition('.')[0]}.0.bias"
    return own if own in editor.constants else first


def _attention(editor: _Editor, softmax: onnx.NodeProto, scheme: Scheme) -> str:
    """Quantises the four factors of an attention; or says why not, and changes nothing."""
    first = editor.makers[softmax.input[0]]
    second = next(n for n in editor.model.graph.node if softmax.output[0] in n.input)
    name = softmax.name.rpartition(".")[0]
    factors = [(first, 0, "q"), (first, 1, "k"), (second, 0, "probs"), (second, 1, "v")]
    missing = [part for _, _, part in factors if f"{name}.{part}" not in scheme.activations]
    if missing:
        return f"the scheme has no scale for {', '.join(missing)}: quantise with the preset 'full'"
    query, value = editor.shapes[first.input[0]], editor.shapes[second.input[1]]
    if query[-2] == 1:
        return "a product on [CLS] alone is memory-bound"
    for size in (query[-1], value[-1]):
        if reason := fusable(size, value[-2], int8=True):
            return reason
    for node, index, part in factors:
        scale = symmetric_scale(scheme.activations[f"{name}.{part}"])
        node.input[index] = editor.quantized(node.input[index], scale, 0.0)
    return ""


class _Editor:
    """Adds Q/DQ nodes and constants to a copy of a graph; each value is quantised once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        graph = self.model.graph
        self.makers = {o: n for n in graph.node for o in n.output}
        self.constants = {i.name: i for i in graph.initializer}
        self.shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
        self.done: dict[str, str] = {}
        self.pairs: dict[str, list[onnx.NodeProto]] = {}

    def origin(self, value: str) -> str:
        """The value that `value` is a slice of, or itself: its scale is that of the whole."""
        maker = self.makers.get(value)
        return maker.input[0] if maker is not None and maker.op_type == "Slice" else value

    def add(self, name: str, array: np.ndarray) -> str:
        from onnx import numpy_helper

        if name not in self.constants:
            self.model.graph.initializer.append(numpy_helper.from_array(array, name))
            self.constants[name] = self.model.graph.initializer[-1]
        return name

    def array(self, name: str) -> np.ndarray:
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name])

    def replace(self, name: str, array: np.ndarray) -> None:
        from onnx import numpy_helper

        self.constants[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))

    def quantized(self, value: str, scale: float, shift: float) -> str:
        """The name of `value` less `shift` after its Q/DQ pair."""
        from onnx import helper

        if value not in self.done:
            inputs = [
                self.add(f"{value}.int8_scale", np.float32(scale)),
                self.add("int8_zero", np.int8(0)),
            ]
            names = [f"{value}.shifted", f"{value}.int8", f"{value}.dequantized"]
            pair = [
                helper.make_node("QuantizeLinear", [names[0], *inputs], [names[1]], name=f"{value}.quantize"),
                helper.make_node("DequantizeLinear", [names[1], *inputs], [names[2]], name=f"{value}.dequantize"),
            ]
            if shift:
                constant = self.add(f"{value}.shift", np.float32(shift))
                pair.insert(0, helper.make_node("Sub", [value, constant], names[:1], name=names[0]))
            else:
                pair[0].input[0] = value
            self.pairs[value] = pair
            self.done[value] = names[2]
        return self.done[value]

    def weight(self, name: str, values: np.ndarray, scale: np.ndarray, axis: int) -> str:
        """The name of the weight after its DequantizeLinear."""
        from onnx import helper

        inputs = [self.add(f"{name}.int8", values.astype(np.int8))]
        inputs.append(self.add(f"{name}.int8_scale", scale.astype(np.float32)))
        inputs.append(self.add(f"{name}.int8_zero", np.zeros(len(scale), np.int8)))
        made = f"{name}.dequantized"
        self.pairs[name] = [helper.make_node("DequantizeLinear", inputs, [made], name=f"{name}.dequantize", axis=axis)]
        return made

    def finish(self) -> onnx.ModelProto:
        """The graph with each pair right behind the value that it quantises, unused constants dropped."""
        import onnx

        graph = self.model.graph
        nodes = [node for value, pair in self.pairs.items() if value in self.constants for node in pair]
        for node in graph.node:
            nodes.append(node)
            for output in node.output:
                nodes += self.pairs.get(output, [])
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        used = {name for node in copies for name in node.input}
        constants = [onnx.TensorProto.FromString(i.SerializeToString()) for i in graph.initializer if i.name in used]
        del graph.node[:]
        del graph.initializer[:]
        del graph.value_info[:]
        graph.node.extend(copies)
        graph.initializer.extend(constants)
        model = onnx.shape_inference.infer_shapes(self.model, check_type=True, strict_mode=True)
        onnx.checker.check_model(model)
        return model
