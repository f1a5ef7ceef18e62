"""Ranges of a graph's values on images, and how images make batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.export.typed import typed_graph
from vitedge.export.vit import export_vit
from vitedge.onnx_graph import ranges
from vitedge.onnx_graph.builder import GraphBuilder
from vitedge.onnx_graph.session import open_session, run_images
from vitedge.vit.block import Merge
from vitedge.vit.config import uniform
from vitedge.vit.model import VisionTransformer, init_weights

PREPROCESS = Preprocess(resize=32, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)


def images(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)


def numbers(batch: int | str = "batch", empty: int = 0) -> onnx.ModelProto:
    """x - 100 as floats, its logarithm, and a slice of `empty` rows of it."""
    g = GraphBuilder("numbers")
    g.input("pixels", TensorProto.UINT8, [batch, 32, 32, 3])
    x = g.op("Cast", ["pixels"], "float", to=TensorProto.FLOAT)
    x = g.op("Sub", [x, g.constant("hundred", np.float32(100))], "shifted")
    g.op("Log", [x], "log")
    g.op("Slice", [x, g.shape(0), g.shape(empty), g.shape(1)], "none")
    for name, rows in (("shifted", 32), ("log", 32), ("none", empty)):
        g.output(name, TensorProto.FLOAT, [batch, rows, 32, 3])
    return g.build()


@pytest.mark.parametrize("batch", [1, 4, "batch"])
def test_the_least_and_the_greatest_number_of_each_value(batch) -> None:
    pixels = images(8)
    found = ranges.value_ranges(numbers(batch), ["shifted", "log", "none"], pixels, threads=1)
    assert found["shifted"] == (float(pixels.min()) - 100, float(pixels.max()) - 100)
    assert np.isinf(found["log"]).any(), "of negative numbers, and of 0"


def test_a_value_without_numbers_has_no_range_and_is_not_reduced() -> None:
    """Runtimes give infinity for the least of no numbers, or fail: ONNX Runtime 1.20."""
    model = numbers()
    assert ranges.value_ranges(model, ["none"], images(4), threads=1) == {"none": (0.0, 0.0)}
    assert ranges.measure_ranges(model, images(4), threads=1)["none"] == 0
    reduced = ranges._with_extremes(model, ["shifted"])
    assert [node.op_type for node in reduced.graph.node[-2:]] == ["ReduceMin", "ReduceMax"]


@pytest.mark.parametrize("batch", [1, None])
def test_a_merged_model_without_prefix_tokens_is_typed(batch) -> None:
    config = uniform(image_size=32, patch_size=8, width=32, depth=2, heads=2, hidden=48, classes=10)
    config = replace(config, prefix_tokens=(), pool=("mean",)).with_block(0, merge=Merge(12))
    config = config.with_block(1, merge=Merge(9))
    model = init_weights(VisionTransformer(config), 0)
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    graph = export_vit(config, weights, PREPROCESS, batch)
    found = ranges.value_ranges(graph, ranges.float_values(graph), images(4), threads=1)
    assert found["block1.merge.prefix"] == found["block1.merge.prefix_n"] == (0.0, 0.0)
    result = typed_graph(graph, images(4), threads=1)
    assert all(np.isfinite(kept.range) for kept in result.kept) and 0 < result.largest < np.inf


def test_an_infinite_value_is_not_hidden_by_an_empty_one() -> None:
    assert ranges.first_overflow(numbers(), images(4)) == ("log", np.inf)


@pytest.mark.parametrize(
    ("batch", "count", "sizes"), [(1, 2, [1, 1]), (4, 10, [4, 4]), (4, 3, [4]), ("batch", 5, [2, 2])]
)
def test_images_make_whole_batches(batch, count, sizes) -> None:
    told: list[tuple[int, int]] = []
    session = open_session(numbers(batch).SerializeToString(), threads=1)
    found = list(run_images(session, images(count), 2, lambda done, total: told.append((done, total))))
    assert [len(outputs[0]) for outputs in found] == sizes
    assert told == [(sum(sizes[: i + 1]), max(count, sizes[0])) for i in range(len(sizes))]
    assert np.array_equal(found[0][0][:count], images(count)[: sizes[0]].astype(np.float32) - 100)


def test_no_images_give_no_outputs_and_wrong_ones_are_refused() -> None:
    session = open_session(numbers().SerializeToString(), threads=1)
    assert not list(run_images(session, images(0)))
    with pytest.raises(VitedgeError, match=r"\(16, 16, 3\), the graph takes \(32, 32, 3\)"):
        next(run_images(session, np.zeros((1, 16, 16, 3), np.uint8)))
