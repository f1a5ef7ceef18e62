"""What the compiler won't take, found before it is called: it crashes on some of it without a word."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

from vitedge.onnx_graph.matcher import attribute, input_shape
from vitedge.targets.base import Problem
from vitedge.targets.rknn.rewrites import patch_embed

OPSETS = range(12, 20)
# "ONNX OPs supported by RKNN Toolkit2", RKNNToolKit2_OP_Support-2.3.2.md of the vendor.
_NAMES = """
    Add And ArgMax ArgMin AveragePool BatchNormalization Cast Clip Concat Constant ConstantOfShape Conv
    ConvTranspose Cos DepthToSpace DequantizeLinear Div Dropout Elu Equal Erf Exp Expand EyeLike Flatten
    Floor Gather GatherElements Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GRU
    HardSigmoid HardSwish Identity If InstanceNormalization LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax LpNormalization LRN LSTM MatMul Max MaxPool MaxRoiPool MaxUnpool
    MeanVarianceNormalization Min Mish Mod Mul Pad Pow PRelu QuantizeLinear ReduceMax ReduceMean
    ReduceMin ReduceSum Relu Reshape Resize ReverseSequence RoiAlign ScatterND Shape Sigmoid Sin Size
    Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Tanh Tile Transpose Unsqueeze Where
"""
OPERATORS = frozenset(_NAMES.split())


def check_graph(path: Path) -> list[Problem]:
    """The problems of the graph as the bundle has it, before the rewrites; empty where it can be built."""
    model = onnx.load(path)
    problems = [_opset(o) for o in model.opset_import if o.domain in ("", "ai.onnx") and o.version not in OPSETS]
    shape = input_shape(model)
    if -1 in shape or shape[0] != 1:
        batch = "free" if -1 in shape else str(shape[0])
        problems.append(Problem("pixels", "input", f"its batch is {batch}; Softmax and Slice want batch 1"))
    for node in model.graph.node:
        if reason := _reason(node):
            problems.append(Problem(node.name or node.output[0], node.op_type, reason))
    return problems


def _opset(opset: onnx.OperatorSetIdProto) -> Problem:
    return Problem("graph", "opset", f"opset {opset.version}; the toolkit reads {OPSETS.start} to {OPSETS.stop - 1}")


def _reason(node: onnx.NodeProto) -> str:
    if node.domain not in ("", "ai.onnx"):
        return f"an operator of the domain '{node.domain}'"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        # The compiler dies of a segmentation fault on an imported Q/DQ ViT.
        return "it is quantised already; RKNN is built from the float graph"
    if node.op_type not in OPERATORS:
        return "not in the vendor's list of operators"
    if node.op_type == "Conv":
        stride, kernel = attribute(node, "strides", [1]), attribute(node, "kernel_shape", [1])
        largest = max(stride)
        splittable = kernel == stride and patch_embed.strides(largest) is not None
        if largest > patch_embed.MAX_STRIDE and not splittable:
            return f"its stride is {largest}: the NPU has 1 to {patch_embed.MAX_STRIDE}, and it has no factors in these"
    if node.op_type == "Cast" and attribute(node, "to") == TensorProto.DOUBLE:
        return "float64"
    return ""
