"""Float32 graph to a strongly typed FP16 one: the types in the graph say what runs in which precision.

TensorRT 11 knows no other way, and 10 offers it (NetworkDefinitionCreationFlag.STRONGLY_TYPED). FP32 stays
where FP16 can't hold the numbers: LayerNorms and GroupNorms, whose sums of squares overflow; every node that touches
a value beyond half of FP16's maximum on calibration images; weights that overflow or vanish. Each exception is named
with what was measured. Softmax keeps FP16 inputs and outputs, because the fused attention kernel is MatMul-
Softmax-MatMul with nothing in between and sums in FP32 itself; it runs in FP32 where its scores are too
large.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vitedge.onnx_graph.editor import checked, set_attribute
from vitedge.onnx_graph.ranges import FLOAT16_MAX


@dataclass(frozen=True)
class Float16Options:
    """What stays in FP32.

    Attributes:
        limit: largest magnitude that an FP16 value may have on calibration images.
        keep_ops: operators that stay in FP32 wherever they stand.
        weight_error: relative L2 error of a weight's rounding to FP16 above which it stays in FP32 (normal
            numbers have 2e-4; weights that vanish into FP16's subnormal numbers have more).
    """

    limit: float = 0.5 * FLOAT16_MAX
    keep_ops: frozenset[str] = frozenset({"LayerNormalization", "InstanceNormalization"})
    weight_error: float = 2e-3


@dataclass(frozen=True)
class Kept:
    """A node that stays in FP32, why, and the largest magnitude among its values (None where none was
    measured).
    """

    node: str
    op: str
    reason: str
    range: float | None


@dataclass(frozen=True)
class Float16Graph:
    """The typed graph, what stayed in FP32, and the largest magnitude of any FP16 value on calibration
    images.
    """

    model: onnx.ModelProto
    kept: list[Kept]
    largest: float
    casts: int
    types: dict[str, int] = field(repr=False)

    def exceptions(self) -> list[Kept]:
        """What stayed in FP32 for its numbers, not for its operator."""
        return [k for k in self.kept if k.reason != _BY_OPERATOR]


# What compares tokens (see `export.merging`).
_CHOOSING = tuple(f".merge.{name}" for name in ("cosine", "distance", "scores", "best", "sorted", "nearest"))
_BY_OPERATOR = "sums of squares overflow FP16"


def weight_error(weight: np.ndarray, added_to: float | None = None) -> float:
    """Relative error of rounding `weight` to FP16; infinity where it overflows.

    For a factor, the L2 norm of the error over that of the weight. For a summand, the largest error over
    `added_to`, the largest magnitude of the sum: a bias of 1e-9 may vanish, beside values of 1.
    """
    with np.errstate(over="ignore"):
        rounded = weight.astype(np.float16).astype(np.float64)
    if not np.isfinite(rounded).all():
        return float("inf")
    error = rounded - weight
    if added_to:
        return float(np.abs(error).max()) / added_to
    norm = float(np.linalg.norm(weight.astype(np.float64)))
    return float(np.linalg.norm(error)) / norm if norm else 0.0


def to_float16(model: onnx.ModelProto, ranges: dict[str, float], options: Float16Options | None = None) -> Float16Graph:
    """The typed FP16 graph of a float32 one (opset 17 or newer, float values named in `ranges`).

    Inputs and outputs keep their types: `pixels` uint8, `logits` float32. Q/DQ nodes take the type of the
    value that they quantise, which needs opset 19; the graph is raised to it then.

    ranges: value -> largest magnitude on calibration images (`measure_ranges`).
    """
    options = options or Float16Options()
    graph = model.graph
    floats = {i.name: i for i in graph.initializer if i.data_type == TensorProto.FLOAT}
    kept = {k.node: k for node in graph.node if (k := _keep(node, ranges, floats, options)) is not None}
    conversion = _Conversion(model, set(ranges), floats, set(kept))
    largest = max(
        (ranges[v] for v, t in conversion.types.items() if t == TensorProto.FLOAT16 and v in ranges),
        default=0.0,
    )
    return Float16Graph(checked(conversion.model), list(kept.values()), largest, conversion.casts, conversion.types)


def _keep(
    node: onnx.NodeProto, ranges: dict[str, float], floats: dict[str, onnx.TensorProto], options: Float16Options
) -> Kept | None:
    """Why `node` stays in FP32, or None where it may run in FP16."""
    touched = [ranges[v] for v in [*node.input, *node.output] if v in ranges]
    largest = max(touched, default=None)
    if largest is not None and largest > options.limit:
        return Kept(node.name, node.op_type, f"a value reaches {largest:.4g}", largest)
    for index, name in enumerate(node.input):
        if name not in floats:
            continue
        summand = node.op_type == "Add" or (node.op_type in ("Conv", "Gemm") and index == 2)
        error = weight_error(numpy_helper.to_array(floats[name]), ranges.get(node.output[0]) if summand else None)
        if error > options.weight_error:
            return Kept(node.name, node.op_type, f"weight {name}: relative error {error:.2g} in FP16", largest)
    if node.op_type in options.keep_ops and touched:
        return Kept(node.name, node.op_type, _BY_OPERATOR, largest)
    if node.name.endswith(_CHOOSING):
        return Kept(node.name, node.op_type, "it chooses which tokens are merged, by small differences", largest)
    return None


class _Conversion:
    """Writes the nodes in the order of the data flow. A value has one type; others get it by one shared Cast.

    Weights go into the new graph one by one, so that no more than one stands in memory a second time.
    """

    def __init__(
        self, source: onnx.ModelProto, values: set[str], floats: dict[str, onnx.TensorProto], kept: set[str]
    ) -> None:
        self.values, self.floats, self.kept = values, floats, kept
        self.types: dict[str, int] = {}
        self.done: dict[tuple[str, int], str] = {}
        self.casts = 0
        self.outputs = {o.name for o in source.graph.output}
        graph = helper.make_graph([], source.graph.name, list(source.graph.input), list(source.graph.output))
        quantized = any(node.op_type == "QuantizeLinear" for node in source.graph.node)
        opset = max(19 if quantized else 0, next(o.version for o in source.opset_import if not o.domain))
        self.model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=max(source.ir_version, 9 if quantized else 0),
            producer_name=source.producer_name,
            producer_version=source.producer_version,
        )
        self.graph = self.model.graph
        self.graph.initializer.extend(t for t in source.graph.initializer if t.name not in floats)
        for node in source.graph.node:
            self._convert(node)

    def _convert(self, node: onnx.NodeProto) -> None:
        wanted = TensorProto.FLOAT if node.name in self.kept else TensorProto.FLOAT16
        inputs = [
            self._typed(name, wanted) if name in self.floats or name in self.values else name for name in node.input
        ]
        new = self.graph.node.add()
        new.CopyFrom(node)
        new.input[:] = inputs
        made = [o for o in node.output if o in self.values]
        if node.op_type == "Cast" and made:
            set_attribute(new, "to", wanted)
        for i, name in enumerate(node.output):
            if name not in self.values:
                continue
            self.types[name] = wanted
            if name in self.outputs and wanted == TensorProto.FLOAT16:
                # The graph's output keeps its name and its type.
                new.output[i] = f"{name}.float16"
                self._cast(f"{name}.float16", name, TensorProto.FLOAT)

    def _typed(self, name: str, wanted: int) -> str:
        """The name under which `name` is had in the type `wanted`."""
        if self.types.get(name) == wanted:
            return name
        if (name, wanted) not in self.done:
            made = f"{name}.{'float16' if wanted == TensorProto.FLOAT16 else 'float32'}"
            if name not in self.floats:
                self._cast(name, made, wanted)
            elif wanted == TensorProto.FLOAT:
                made = name
                self.graph.initializer.append(self.floats[name])
            else:
                with np.errstate(over="ignore"):
                    half = numpy_helper.to_array(self.floats[name]).astype(np.float16)
                self.graph.initializer.append(numpy_helper.from_array(half, made))
            self.done[name, wanted] = made
        return self.done[name, wanted]

    def _cast(self, value: str, name: str, wanted: int) -> None:
        self.graph.node.append(helper.make_node("Cast", [value], [name], name=f"{name}.cast", to=wanted))
        self.casts += 1
