"""An MLP's groups of units computed in one product again, as far as quantisation allows. Exact.

Groups exist so that each has its own scale after GELU. fc1 and GELU need none of that: their products are joined,
and the result is split. Where no group's fc2 is quantised, fc2 is joined too and nothing is split.
"""

from __future__ import annotations

import numpy as np

from vitedge.onnx_graph.editor import GraphEditor
from vitedge.onnx_graph.matcher import Linear

_GELU = ("div", "erf", "add", "mul")


def rewrite(g: GraphEditor) -> int:
    """Joins the groups of every MLP that has some; returns how many MLPs it joined."""
    names = [node.name.removesuffix(".gelu.0") for node in g.nodes if node.name.endswith(".mlp.gelu.0")]
    return sum(_join(g, name) for name in names)


def _join(g: GraphEditor, name: str) -> bool:
    count = sum(1 for node in g.nodes if node.name.startswith(f"{name}.gelu.") and node.name.count(".") == 3)
    found = [g.find_linear(f"{name}.fc1.{i}") for i in range(count)]
    first = [linear for linear in found if linear is not None]
    if len(first) < count or len({linear.x for linear in first}) != 1:
        return False
    if len({linear.scale is None for linear in first}) != 1:
        return False
    if any(f"{name}.gelu.{i}.div" not in g.makers for i in range(count)):
        return False  # another activation than GELU's erf form
    if any(g.makers[f"{name}.gelu.{i}.div"].input[0] != linear.result for i, linear in enumerate(first)):
        return False  # fc1's output is quantised, a scale a group
    sizes = [linear.weight.shape[1] for linear in first]
    biases = [np.zeros(len(part.weight[0]), np.float32) if part.bias is None else part.bias for part in first]
    scales = [linear.scale for linear in first if linear.scale is not None]
    g.write_linear(
        first[0].x,
        f"{name}.fc1",
        np.concatenate([linear.weight for linear in first], 1),
        np.concatenate(scales) if scales else None,
        np.concatenate(biases),
    )
    _gelu(g, name, count)
    second = [g.find_linear(f"{name}.fc2.{i}") for i in range(count)]
    if all(fc2 is not None and fc2.scale is None and fc2.x == f"{name}.gelu.{i}" for i, fc2 in enumerate(second)):
        _join_second(g, name, [fc2 for fc2 in second if fc2 is not None])
    else:
        parts = [f"{name}.gelu.{i}" for i in range(count)]
        g.op("Split", [f"{name}.gelu", g.constant(f"{name}.gelu.sizes", np.array(sizes, np.int64))], parts, axis=-1)
    return True


def _gelu(g: GraphEditor, name: str, count: int) -> None:
    """The operators of the first group's GELU, on `fc1`; those of all groups are removed."""
    old = [g.makers[f"{name}.gelu.{i}"] for i in range(count)]

    def renamed(value: str) -> str:
        return value.replace(f"{name}.fc1.0", f"{name}.fc1").replace(f"{name}.gelu.0", f"{name}.gelu")

    for value in (*(f"{name}.gelu.0.{part}" for part in _GELU), f"{name}.gelu.0"):
        node = g.makers[value]
        g.op(node.op_type, [renamed(source) for source in node.input], renamed(value))
    g.remove(old)


def _join_second(g: GraphEditor, name: str, parts: list[Linear]) -> None:
    biases = [part.bias for part in parts if part.bias is not None]
    final = g.makers[f"{name}.fc2"]
    weight = np.concatenate([part.weight for part in parts])
    g.write_linear(f"{name}.gelu", f"{name}.fc2", weight, None, np.sum(biases, axis=0))
    g.remove([final])
