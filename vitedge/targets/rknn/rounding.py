"""The noise that each part's rounding to INT8 makes, without a build: the float graph with that part alone rounded.

A build takes half a minute and more, and a ViT has two dozen parts; a pass through the float graph takes seconds. The
rounding here is ours (a tensor's least and greatest value on calibration images, weights symmetric a channel), not the
vendor's: it is for the order of the parts, and builds decide how many of them it takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitedge.targets.rknn.graph import run_each
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
    ranges = _ranges(model, sorted({name for names in values.values() for name in names}), calibration)
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
    model: onnx.ModelProto, values: Sequence[str], ranges: Mapping[str, tuple[float, float]]
) -> onnx.ModelProto:
    """A copy in which these values, and the weights that make them, have 256 levels."""
    import onnx
    from onnx import numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in copy.graph.initializer}
    chosen, nodes = set(values), []
    for node in copy.graph.node:
        nodes.append(node)
        hit = [name for name in node.output if name in chosen]
        if hit and node.op_type in _WEIGHTS:
            index, axis = _WEIGHTS[node.op_type]
            if (tensor := weights.get(node.input[index])) is not None:
                array = _symmetric(numpy_helper.to_array(tensor), axis)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        for name in hit:
            exact = f"{name}.exact"
            node.output[list(node.output).index(name)] = exact
            low, high = ranges[name]
            step = (high - low) / 255 or 1.0
            # Float operators: a runtime makes no integer kernels of them, whose products some CPUs saturate.
            constants = {"step": step, "low": round(low / step), "high": round(low / step) + 255}
            for key, number in constants.items():
                copy.graph.initializer.append(numpy_helper.from_array(np.array(number, np.float32), f"{name}.{key}"))
            steps = (
                ("Div", (exact, f"{name}.step"), f"{name}.scaled"),
                ("Round", (f"{name}.scaled",), f"{name}.whole"),
                ("Clip", (f"{name}.whole", f"{name}.low", f"{name}.high"), f"{name}.clipped"),
                ("Mul", (f"{name}.clipped", f"{name}.step"), name),
            )
            nodes += [onnx.helper.make_node(op, inputs, [output]) for op, inputs, output in steps]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _symmetric(weight: np.ndarray, axis: int) -> np.ndarray:
    """The weight on 255 levels a channel."""
    axis %= weight.ndim
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.abs(weight).max(others, keepdims=True) / 127
    scale[scale == 0] = 1
    return np.asarray(np.round(weight / scale) * scale, np.float32)


def _ranges(model: onnx.ModelProto, names: Sequence[str], pixels: np.ndarray) -> dict[str, tuple[float, float]]:
    """The least and the greatest number of each value, 0 among them."""
    from vitedge.export.taps import with_outputs

    found = dict.fromkeys(names, (0.0, 0.0))
    for values in run_each(with_outputs(model, names).SerializeToString(), pixels):
        for name, value in zip(names, values[1:], strict=True):
            low, high = found[name]
            found[name] = (min(low, float(value.min())), max(high, float(value.max())))
    return found


def _logits(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([values[0].reshape(1, -1) for values in run_each(model.SerializeToString(), pixels)])
