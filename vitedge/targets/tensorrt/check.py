"""What TensorRT won't take, and whether each attention stands as the fused kernel wants it: read from the
graph.

The kernel wants MatMul-Softmax-MatMul with nothing but an additive mask in between (the sizes of merged tokens are
one), the scale on Q or K before the first product,
head sizes from 16 to 256 in steps of 8, and 16-bit types; quantised attention wants Q/DQ on all four factors,
and kernels for it exist only for certain head sizes and lengths (NVIDIA's guide, "Fused Attention").
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitedge.onnx_graph.matcher import Graph, value_shapes
from vitedge.targets.base import Problem

if TYPE_CHECKING:
    import onnx

# The newest opset of TensorRT 10.3's parser (JetPack 6); 11 takes 25.
NEWEST_OPSET = 20
# Operators that vitedge writes, all in the parser of 10.3, and some that it has only later.
KNOWN = frozenset(
    (
        "Abs",
        "Add",
        "ArgMax",
        "AveragePool",
        "Cast",
        "Clip",
        "Concat",
        "Conv",
        "DequantizeLinear",
        "Div",
        "Equal",
        "Erf",
        "Expand",
        "Flatten",
        "Gather",
        "GatherND",
        "Gelu",
        "Gemm",
        "HardSwish",
        "Identity",
        "InstanceNormalization",
        "LayerNormalization",
        "Log",
        "MatMul",
        "MaxPool",
        "Mul",
        "Pad",
        "Pow",
        "QuantizeLinear",
        "Reciprocal",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Shape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tanh",
        "TopK",
        "Transpose",
        "Unsqueeze",
    )
)
LATER = {"Attention": "11.0 (opset 23)", "RMSNormalization": "10.14 (opset 23)", "RotaryEmbedding": "10.15"}
INT8_HEAD_SIZES = (16, 32, 64)
INT8_LENGTH = 512


@dataclass(frozen=True)
class Attention:
    """One attention block of a graph.

    Attributes:
        softmax: name of its Softmax node.
        head_size, value_size: of query and key, and of the value; 0 where the graph does not tell.
        tokens: length of the keys.
        int8: whether its products are quantised.
        reason: why it can't be fused; empty where it can.
    """

    softmax: str
    head_size: int
    value_size: int
    tokens: int
    int8: bool
    reason: str


def fusable(head_size: int, tokens: int, *, int8: bool = False) -> str:
    """Why a fused kernel can't serve such heads, or an empty string."""
    if not 16 <= head_size <= 256 or head_size % 8:
        return f"its head size is {head_size}; the fused kernel takes 16 to 256, in steps of 8"
    if int8 and head_size not in INT8_HEAD_SIZES:
        return f"its head size is {head_size}; INT8 attention is fused for {INT8_HEAD_SIZES}"
    if int8 and tokens > INT8_LENGTH:
        return f"it has {tokens} tokens; INT8 attention is fused up to {INT8_LENGTH}"
    return ""


def attentions(model: onnx.ModelProto) -> list[Attention]:
    """Each Softmax of the graph, with what stands around it. Shapes must be inferred."""
    g, shapes = Graph(model), value_shapes(model)
    return [_attention(g, shapes, node) for node in g.nodes if node.op_type == "Softmax"]


def graph_problems(model: onnx.ModelProto) -> list[Problem]:
    """Nodes that TensorRT's parser refuses, with the reason and the first version that takes them."""
    g, problems = Graph(model), []
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset > NEWEST_OPSET:
        reason = f"opset {opset}: TensorRT 10.3 (JetPack 6) takes up to {NEWEST_OPSET}, TensorRT 11 up to 25"
        problems.append(Problem("(graph)", "opset", reason))
    for node in g.nodes:
        if node.domain not in ("", "ai.onnx"):
            reason = f"the domain '{node.domain}' is ONNX Runtime's own; no version of TensorRT has it"
            problems.append(Problem(node.name, node.op_type, reason))
        elif node.op_type not in KNOWN:
            since = LATER.get(node.op_type)
            reason = f"TensorRT has it since {since}" if since else "TensorRT 10.3's parser has no such operator"
            problems.append(Problem(node.name, node.op_type, reason))
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            problems += _quantizer_problems(g, node)
    return problems


def check_file(path: Path) -> list[Problem]:
    """`graph_problems` of an ONNX file; nothing where the package onnx is missing: the parser then tells."""
    try:
        import onnx
    except ImportError:
        return []
    return graph_problems(onnx.load(str(path), load_external_data=False))


def _quantizer_problems(g: Graph, node: onnx.NodeProto) -> list[Problem]:
    if len(node.input) < 3 or not node.input[2]:
        if node.op_type == "QuantizeLinear":
            return [Problem(node.name, node.op_type, "without a zero point it makes uint8; TensorRT takes int8")]
        return []
    zero = g.array(node.input[2])
    if zero is None or zero.dtype.name != "int8":
        return [Problem(node.name, node.op_type, "TensorRT takes int8 only, not uint8")]
    if zero.any():
        return [Problem(node.name, node.op_type, "TensorRT takes symmetric quantisation only: zero point 0")]
    return []


def _source(g: Graph, value: str) -> tuple[onnx.NodeProto | None, bool]:
    """The node that makes `value`, and whether Q/DQ stand in between."""
    node, quantized = g.makers.get(value), False
    while node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        node, quantized = g.makers.get(node.input[0]), True
    return node, quantized


def _sink(g: Graph, value: str) -> list[onnx.NodeProto]:
    """The nodes that read `value`, through Q/DQ."""
    found = []
    for node in g.readers.get(value, []):
        through = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        found += _sink(g, node.output[0]) if through else [node]
    return found


def _attention(g: Graph, shapes: dict[str, tuple[int, ...]], softmax: onnx.NodeProto) -> Attention:
    first, _ = _source(g, softmax.input[0])
    if first is not None and first.op_type == "Add":
        first, _ = _source(g, first.input[0])
    after = _sink(g, softmax.output[0])
    if first is None or first.op_type != "MatMul":
        found = first.op_type if first is not None else "an input"
        return Attention(softmax.name, 0, 0, 0, False, f"{found} stands between the product and the softmax")
    if len(after) != 1 or after[0].op_type != "MatMul":
        found = ", ".join(sorted({n.op_type for n in after})) or "nothing"
        return Attention(softmax.name, 0, 0, 0, False, f"{found} reads the softmax, not one product")
    second = after[0]
    query, value = shapes.get(first.input[0], ()), shapes.get(second.input[1], ())
    head, size = (shape[-1] if shape else 0 for shape in (query, value))
    tokens = value[-2] if len(value) > 1 else 0
    factors = [*first.input, *second.input]
    quantized = [_source(g, name)[1] for name in factors]
    reason = fusable(head, tokens, int8=all(quantized)) or fusable(size, tokens, int8=all(quantized))
    if any(quantized) and not all(quantized):
        which = [n for n, q in zip(("Q", "K", "softmax", "V"), quantized, strict=True) if not q]
        reason = reason or f"Q/DQ on some of its factors, but not on {', '.join(which)}"
    if any(_source(g, name)[0] is None for name in factors):
        reason = reason or "one of its factors is a constant"
    return Attention(softmax.name, head, size, tokens, all(quantized), reason)
