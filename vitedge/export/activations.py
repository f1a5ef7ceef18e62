"""Activations as operators, in the order that compilers recognise."""

from __future__ import annotations

import math

import numpy as np

from vitedge.onnx_graph.builder import GraphBuilder


def _gelu(g: GraphBuilder, x: str, name: str) -> str:
    """x * (1 + erf(x / sqrt(2))) * 0.5 in the order of operators that compilers recognise as GELU."""
    y = g.op("Div", [x, g.constant("sqrt2", np.float32(math.sqrt(2)))], f"{name}.div")
    y = g.op("Erf", [y], f"{name}.erf")
    y = g.op("Add", [y, g.constant("one", np.float32(1))], f"{name}.add")
    y = g.op("Mul", [x, y], f"{name}.mul")
    return g.op("Mul", [y, g.constant("half", np.float32(0.5))], name)


def _tanh_gelu(g: GraphBuilder, x: str, name: str) -> str:
    """0.5 x * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    y = g.op("Mul", [x, x], f"{name}.square")
    y = g.op("Mul", [y, x], f"{name}.cube")
    y = g.op("Mul", [y, g.constant("gelu_cubic", np.float32(0.044715))], f"{name}.cubic")
    y = g.op("Add", [y, x], f"{name}.inner")
    y = g.op("Mul", [y, g.constant("sqrt_2_pi", np.float32(math.sqrt(2 / math.pi)))], f"{name}.scaled")
    y = g.op("Tanh", [y], f"{name}.tanh")
    y = g.op("Add", [y, g.constant("one", np.float32(1))], f"{name}.add")
    return g.op("Mul", [g.op("Mul", [x, g.constant("half", np.float32(0.5))], f"{name}.half"), y], name)


def _quick_gelu(g: GraphBuilder, x: str, name: str) -> str:
    """x * sigmoid(1.702 x)."""
    y = g.op("Mul", [x, g.constant("quick_gelu", np.float32(1.702))], f"{name}.scaled")
    return g.op("Mul", [x, g.op("Sigmoid", [y], f"{name}.sigmoid")], name)


def _silu(g: GraphBuilder, x: str, name: str) -> str:
    """x * sigmoid(x)."""
    return g.op("Mul", [x, g.op("Sigmoid", [x], f"{name}.sigmoid")], name)


def _relu(g: GraphBuilder, x: str, name: str) -> str:
    """max(x, 0)."""
    return g.op("Relu", [x], name)


def _hard_swish(g: GraphBuilder, x: str, name: str) -> str:
    """x * min(max(x / 6 + 1/2, 0), 1)."""
    return g.op("HardSwish", [x], name)


# Of an MLP by its name in `BlockConfig`, and of a stem's layer by that in `StemLayer`.
ACTIVATIONS = {
    "gelu": _gelu,
    "gelu_tanh": _tanh_gelu,
    "quick_gelu": _quick_gelu,
    "swiglu": _silu,
    "silu": _silu,
    "relu": _relu,
    "hard_swish": _hard_swish,
}
