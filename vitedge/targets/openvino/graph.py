"""Our ONNX graph as an OpenVINO model. Exact rewrites only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitedge.errors import VitedgeError
from vitedge.onnx_graph.editor import GraphEditor
from vitedge.targets.openvino.runner import load
from vitedge.targets.rewrites import cls_attention, mlp_groups


def convert(graph: Path, precision: str) -> tuple[Any, dict[str, int]]:
    """(the OpenVINO model, how many times each rewrite found its pattern).

    Groups of MLP units are joined in the float precisions only: in INT8, OpenVINO fuses GELU and the next
    quantisation into each group's product, and the joined one needs passes of their own (measured: 2 % slower).
    Raises VitedgeError where OpenVINO's reader refuses the graph.
    """
    import onnx

    ov = load()
    g = GraphEditor(onnx.load(graph))
    counts = {"cls_attention": cls_attention.rewrite(g)}
    if precision != "int8":
        counts["mlp_groups"] = mlp_groups.rewrite(g)
    rewritten = g.finish()
    try:
        model = ov.Core().read_model(rewritten.SerializeToString(), b"")
    except RuntimeError as error:
        raise VitedgeError(
            f"OpenVINO {ov.__version__} can't read the graph.",
            str(error).strip().splitlines()[-1],
            "Install a newer openvino: pip install -U openvino",
            exit_code=1,
        ) from error
    counts["keys_as_they_are"] = keys_as_they_are(model)
    return model, counts


def uses_eight_bits(graph: Path) -> bool:
    """Whether a weight in INT8 is larger than 7 bits hold."""
    import onnx

    stored = onnx.load(graph).graph.initializer
    weights = (
        onnx.numpy_helper.to_array(t) for t in stored if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1
    )
    return any(np.abs(weight.astype(np.int16)).max(initial=0) > 64 for weight in weights)


def keys_as_they_are(model: Any) -> int:
    """Q K^T with a product that reads K transposed, in place; returns how many it rewrote.

    ONNX's MatMul has no such flag, so the exported graph transposes K by an operator of its own; OpenVINO's has,
    and then folds what is left into its fused attention.
    """
    from openvino import opset13 as op

    count = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Transpose" or not node.get_friendly_name().endswith(".attention.k.transposed"):
            continue
        heads = op.transpose(node.input_value(0), op.constant(np.array([0, 2, 1, 3], np.int64)))
        for reader in list(node.output(0).get_target_inputs()):
            old = reader.get_node()
            if old.get_type_name() != "MatMul":
                continue  # a quantised K: its Q/DQ stands in between
            new = op.matmul(old.input_value(0), heads, False, True)
            new.set_friendly_name(old.get_friendly_name())
            for target in list(old.output(0).get_target_inputs()):
                target.replace_source_output(new.output(0))
            count += 1
    model.validate_nodes_and_infer_types()
    return count
