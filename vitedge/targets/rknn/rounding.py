"""The noise that each part's rounding to INT8 makes, without a build: the float graph with that part alone rounded.

A build takes half a minute and more, and a ViT has two dozen parts; a pass through the float graph takes seconds. The
rounding here is ours (a tensor's least and greatest value on calibration images, weights symmetric a channel), not the
vendor's: it is for the order of the parts, and builds decide how many of them it takes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitedge.onnx_graph.editor import GraphEditor
from vitedge.onnx_graph.ranges import value_ranges
from vitedge.onnx_graph.session import open_session, run_images
from vitedge.targets.rknn.harm import noise_power

if TYPE_CHECKING:
    import onnx

# Nodes with weights of their own: which input they are, and the axis of its output channels.
_WEIGHTS = {"Conv": (1, 0), "MatMul": (1, -1)}


def noise_of_parts(
    graph: Path, parts: Mapping[str, Sequence[str]], pixels: np.ndarray, calibration: np.ndarray
) -> dict[str, np.ndarray]:
    """Part -> variance of the noise on each image [N], as `harm.noise_power` has it.

    graph: the float graph; parts: each one's values, by the names of the compiler or the graph; pixels: uint8
    [N, H, W, C] that the noise is measured on; calibration: others, for the ranges.
    """
    import onnx

    model = onnx.load(graph)
    made = {name for node in model.graph.node for name in node.output}
    values = {part: in_graph(names, made) for part, names in parts.items()}
    ranges = value_ranges(model, sorted({name for names in values.values() for name in names}), calibration)
    reference = _logits(model, pixels)
    return {
        part: noise_power(reference, _logits(rounded(model, names, ranges), pixels)) for part, names in values.items()
    }


def in_graph(names: Iterable[str], made: set[str]) -> list[str]:
    """The graph's values that the compiler's tensors stand for: it appends to the names of what it fuses."""
    found = set()
    for name in names:
        while name and name not in made:
            name = name[:-1]
        found.add(name)
    return sorted(found & made)


def rounded(
    model: onnx.ModelProto, values: Collection[str], ranges: Mapping[str, tuple[float, float]]
) -> onnx.ModelProto:
    """A copy in which these values, and the weights that make them, have 256 levels."""
    g = GraphEditor(model)
    for node in g.take():
        g.keep(node)
        hit = [name for name in node.output if name in values]
        if hit and node.op_type in _WEIGHTS:
            index, axis = _WEIGHTS[node.op_type]
            if (weight := g.array(node.input[index])) is not None:
                g.constant(node.input[index], _symmetric(weight, axis))
        for name in hit:
            _round(g, name, *ranges[name])
    return g.finish()


def _round(g: GraphEditor, name: str, low: float, high: float) -> None:
    """By float operators: a runtime makes no integer kernels of them, whose products some CPUs saturate."""
    step = (high - low) / 255 or 1.0
    first = round(low / step)
    numbers = {"step": step, "low": first, "high": first + 255}
    at = {key: g.constant(g.unique(f"{name}/{key}"), np.float32(number)) for key, number in numbers.items()}
    x = g.op("Div", [g.divert(name), at["step"]], g.unique(f"{name}/scaled"))
    x = g.op("Round", [x], g.unique(f"{name}/whole"))
    x = g.op("Clip", [x, at["low"], at["high"]], g.unique(f"{name}/clipped"))
    g.op("Mul", [x, at["step"]], name)


def _symmetric(weight: np.ndarray, axis: int) -> np.ndarray:
    """The weight on 255 levels a channel."""
    axis %= weight.ndim
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.abs(weight).max(others, keepdims=True) / 127
    scale[scale == 0] = 1
    return np.asarray(np.round(weight / scale) * scale, np.float32)


def _logits(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    session = open_session(model.SerializeToString())
    return np.concatenate([values[0].reshape(1, -1) for values in run_images(session, pixels)])
