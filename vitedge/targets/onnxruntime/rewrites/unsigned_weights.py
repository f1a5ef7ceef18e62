"""Integer weights as uint8 with the zero point 128, for CPUs whose product of uint8 and int8 saturates. Exact.

    MatMulIntegerToFloat(x, W int8, ..., 0)     becomes     MatMulIntegerToFloat(x, W + 128 uint8, ..., 128)

x86 without VNNI multiplies uint8 by int8 with `vpmaddubsw`, whose sums of two products are cut to 16 bits, and
2 * 255 * 127 does not fit. ONNX Runtime's kernel for two uint8 factors (MLAS, `MlasGemmU8U8DispatchAvx2`) widens them
first, so that nothing is cut, with more instructions. See "Quantize ONNX models" in its documentation, on U8S8.
"""

from __future__ import annotations

import numpy as np

from vitedge.onnx_graph.editor import GraphEditor

# Operator -> the places of its weight and of that weight's zero point among the inputs.
_PLACES = {"MatMulIntegerToFloat": (1, 5), "MatMulInteger": (1, 3), "QAttention": (1, 7), "DequantizeLinear": (0, 2)}


def rewrite(g: GraphEditor) -> int:
    """Rewrites every constant int8 factor; returns how many there were."""
    done: dict[str, tuple[str, str]] = {}
    for node in g.nodes:
        if node.op_type not in _PLACES:
            continue
        at, zero_at = _PLACES[node.op_type]
        name = node.input[at]
        values = g.array(name)
        if values is None or values.dtype != np.int8:
            continue
        old = g.array(node.input[zero_at]) if len(node.input) > zero_at and node.input[zero_at] else None
        if name not in done:
            shifted = 128 + (np.zeros((), np.int16) if old is None else old.astype(np.int16))
            done[name] = (
                g.constant(f"{name}.unsigned", (values.astype(np.int16) + 128).astype(np.uint8)),
                g.constant(f"{name}.unsigned.zero", shifted.astype(np.uint8)),
            )
        inputs = [*node.input, *[""] * (zero_at + 1 - len(node.input))]
        inputs[at], inputs[zero_at] = done[name]
        del node.input[:]
        node.input.extend(inputs)
    return len(done)
