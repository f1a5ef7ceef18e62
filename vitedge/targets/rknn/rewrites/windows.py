"""Shifted windows of tokens, and their way back, as one Gather along the tokens.

    Reshape, (Slice, Slice, Concat) twice, Reshape, Transpose, Reshape    becomes    Reshape, Gather, Reshape

Rockchip's compiler makes a shift a convolution and a Gather, and then puts the transpose on the CPU where its height
(a multiple of 16) times its width is over 16384: seven columns of 192 channels. All that the chain does is to move
whole tokens, which is found by sending each token's number through it. Exact; a chain that adds tokens stays.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from vitedge.onnx_graph.editor import GraphEditor
from vitedge.onnx_graph.matcher import attribute, value_shapes

_MOVES = {"Reshape", "Transpose", "Slice", "Concat"}
# Tokens up to which the Gather is along axis 1 of three: the compiler may make that a product of tokens times tokens on
# the NPU (784 tokens: 0.12 M cycles). Along axis 2 of four it puts a transpose on the CPU where it would have done so.
_FEW = 1024


def rewrite(g: GraphEditor) -> int:
    """Rewrites each chain with a shift around a transpose of blocks; returns how many there were."""
    shapes = value_shapes(g.model)
    blocks = [n for n in g.nodes if n.op_type == "Transpose" and attribute(n, "perm") == [0, 2, 1, 3]]
    return sum(_gather(g, shapes, node) for node in blocks)


def _gather(g: GraphEditor, shapes: dict[str, tuple[int, ...]], transpose: onnx.NodeProto) -> bool:
    before, source = _before(g, transpose)
    behind, result = _behind(g, transpose)
    chain = [*before, transpose, *behind]
    if {"Slice", "Concat"} - {node.op_type for node in chain} or not {source, result} <= shapes.keys():
        return False
    own = {id(node) for node in chain}
    inside = [name for node in chain for name in node.output if name != result]
    if any(id(reader) not in own for name in inside for reader in g.readers.get(name, [])):
        return False
    (*_, width), whole = shapes[source], shapes[result]
    if len(shapes[source]) != 3 or min(*shapes[source], *whole) < 1:
        return False
    moved = _numbers(g, chain, source, shapes[source], result).reshape(-1, width)
    indices = moved[:, 0]
    if (moved != indices[:, None]).any() or (np.sort(indices) != np.arange(len(indices))).any():
        return False
    line = (1, len(indices), width) if len(indices) <= _FEW else (1, 1, len(indices), width)
    rows = g.op("Reshape", [source, g.shape(*line)], g.unique(f"{result}.line"))
    order = g.constant(g.unique(f"{result}.order"), indices)
    rows = g.op("Gather", [rows, order], g.unique(f"{result}.gathered"), axis=len(line) - 2)
    g.op("Reshape", [rows, g.shape(*whole)], result)
    g.remove(chain)
    return True


def _before(g: GraphEditor, node: onnx.NodeProto) -> tuple[list[onnx.NodeProto], str]:
    """What moves the tokens that a node reads, in the order of the graph, and what it all starts from."""
    chain: list[onnx.NodeProto] = []
    value = node.input[0]
    while (maker := g.makers.get(value)) is not None and maker.op_type in _MOVES:
        parts = [g.maker(name, "Slice") for name in maker.input] if maker.op_type == "Concat" else []
        slices = [part for part in parts if part is not None]
        if len(slices) < len(parts) or len({part.input[0] for part in slices}) > 1:
            break  # a Concat that adds tokens, such as constant ones
        chain = [*slices, maker, *chain]
        value = slices[0].input[0] if slices else maker.input[0]
    return chain, value


def _behind(g: GraphEditor, node: onnx.NodeProto) -> tuple[list[onnx.NodeProto], str]:
    """What moves the tokens that a node makes, as long as nothing else reads them, and what it all ends in."""
    chain: list[onnx.NodeProto] = []
    value = node.output[0]
    while True:
        readers = g.readers.get(value, [])
        if len(readers) == 1 and readers[0].op_type in ("Reshape", "Transpose"):
            chain.append(readers[0])
        elif len(readers) == 2 and all(part.op_type == "Slice" for part in readers):
            joined = [g.only_reader(part.output[0], "Concat") for part in readers]
            if joined[0] is None or joined[0] is not joined[1]:
                break
            chain += [*readers, joined[0]]
        else:
            break
        value = chain[-1].output[0]
    return chain, value


def _numbers(
    g: GraphEditor, chain: list[onnx.NodeProto], source: str, shape: tuple[int, ...], result: str
) -> np.ndarray:
    """What becomes of each token's number, which stands in all its channels."""
    from onnx.reference import ReferenceEvaluator

    kind = onnx.TensorProto.INT64
    constants = {name: g.tensors[name] for node in chain for name in node.input if name in g.tensors}
    inputs = [helper.make_tensor_value_info(source, kind, shape)]
    outputs = [helper.make_tensor_value_info(result, kind, None)]
    graph = helper.make_graph(chain, "chain", inputs, outputs, list(constants.values()))
    model = helper.make_model(graph, opset_imports=g.model.opset_import)
    tokens = np.broadcast_to(np.arange(shape[0] * shape[1]).reshape(*shape[:2], 1), shape)
    (found,) = ReferenceEvaluator(model).run([result], {source: tokens})
    return np.asarray(found)
