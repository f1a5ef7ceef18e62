"""Each rewrite gives the same logits in ONNX Runtime, within 1e-5 of their range."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from vitedge.data.preprocess import Preprocess
from vitedge.export.vit import export_vit
from vitedge.onnx_graph.editor import GraphEditor
from vitedge.targets.rknn import rewrites
from vitedge.targets.rknn.rewrites import patch_embed, pixels, windows
from vitedge.vit.config import uniform
from vitedge.vit.geometry import Window
from vitedge.vit.model import VisionTransformer, init_weights


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {model.graph.input[0].name: x})[0]


def conv_graph(patch: int, channels: int, width: int = 24, grid: int = 3) -> onnx.ModelProto:
    rng = np.random.default_rng(patch)
    weight = rng.normal(size=(width, channels, patch, patch)).astype(np.float32)
    size = patch * grid
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "embed", kernel_shape=[patch] * 2, strides=[patch] * 2)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width, grid, grid])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(rng.normal(size=width).astype(np.float32), "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("patch", "strides"), [(14, (2, 7)), (16, (4, 4)), (32, (2, 4, 4)), (8, (2, 4))])
def test_patch_embedding_is_the_same_with_strides_the_npu_has(
    patch: int, strides: tuple[int, ...], channels: int
) -> None:
    model = conv_graph(patch, channels)
    x = np.random.default_rng(0).uniform(0, 255, (1, channels, 3 * patch, 3 * patch)).astype(np.float32)
    before = run(model, x)
    g = GraphEditor(model)
    assert patch_embed.rewrite(g) == 1
    model = g.finish()
    convs = [n for n in model.graph.node if n.op_type == "Conv"]
    assert [helper.get_attribute_value(n.attribute[1])[0] for n in convs] == list(strides)
    onnx.checker.check_model(model)
    assert np.abs(run(model, x) - before).max() < 1e-5 * np.ptp(before)


def test_a_small_stride_stays_and_a_prime_one_is_refused() -> None:
    assert not patch_embed.rewrite(GraphEditor(conv_graph(4, 3)))
    assert patch_embed.strides(11) is None
    assert not patch_embed.rewrite(GraphEditor(conv_graph(11, 3)))


def test_a_padded_convolution_stays() -> None:
    model = conv_graph(16, 3)
    model.graph.node[0].attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
    assert not patch_embed.rewrite(GraphEditor(model))


def small_vit(patch: int = 16) -> onnx.ModelProto:
    torch.manual_seed(0)
    config = uniform(image_size=4 * patch, patch_size=patch, width=48, depth=2, heads=3, hidden=96, classes=10)
    model = VisionTransformer(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.08)
                parameter[0] *= 10  # outliers, as in real ViTs
            elif "norm" not in name:
                parameter.normal_(0, 0.1)
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    preprocess = Preprocess(4 * patch, 4 * patch, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    return export_vit(config, weights, preprocess, 1)


def test_the_input_is_float_nchw_in_raw_pixel_scale() -> None:
    model = small_vit()
    x = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    before = run(model, x)
    g = GraphEditor(model)
    assert pixels.rewrite(g)
    assert not pixels.rewrite(g)
    model = g.finish()
    assert not {n.op_type for n in model.graph.node} & {"Cast"}
    after = run(model, x.transpose(0, 3, 1, 2).astype(np.float32))
    assert np.abs(after - before).max() <= 1e-5 * np.ptp(before)


@pytest.mark.parametrize("patch", [14, 16, 32])
def test_all_rewrites_together_keep_the_logits_and_the_original(patch: int) -> None:
    model = small_vit(patch)
    original = model.SerializeToString()
    rewritten, done = rewrites.apply(model)
    assert done == ["pixels", "patch_embed"]
    assert model.SerializeToString() == original
    x = np.random.default_rng(1).integers(0, 256, (1, 4 * patch, 4 * patch, 3), dtype=np.uint8)
    before = run(model, x)
    after = run(rewritten, x.transpose(0, 3, 1, 2).astype(np.float32))
    assert np.abs(after - before).max() < 1e-5 * np.ptp(before)
    assert len({t.name for t in rewritten.graph.initializer}) == len(rewritten.graph.initializer)


def windowed(grid: int, batch: int) -> onnx.ModelProto:
    """Four blocks with windows of 4 x 3 tokens; those of the second are moved along both axes, of the third along
    one."""
    config = uniform(image_size=4 * grid, patch_size=4, width=24, depth=4, heads=2, hidden=48, classes=10)
    shifts = ((0, 0), (2, 1), (0, 1), (0, 0))
    blocks = tuple(
        replace(block, window=Window((4, 3), shift)) for block, shift in zip(config.blocks, shifts, strict=True)
    )
    config = replace(config, blocks=blocks, prefix_tokens=(), positions=False, norm_pre=True, pool=("mean",))
    model = init_weights(VisionTransformer(config), 0).eval()
    preprocess = Preprocess(4 * grid, 4 * grid, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    return export_vit(config, {k: v.numpy() for k, v in model.state_dict().items()}, preprocess, batch)


@pytest.mark.parametrize("batch", [1, 2])
def test_moved_windows_are_gathered(batch: int) -> None:
    model = windowed(12, batch)
    x = np.random.default_rng(0).integers(0, 256, (batch, 48, 48, 3), dtype=np.uint8)
    before, g = run(model, x), GraphEditor(model)
    moves = len([n for n in g.nodes if n.op_type in ("Slice", "Concat")])
    assert windows.rewrite(g) == 4 and not windows.rewrite(g), "there and back, in two of the blocks"
    after = g.finish()
    onnx.checker.check_model(after)
    gathers = [n for n in after.graph.node if n.op_type == "Gather"]
    orders = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    assert len(gathers) == 4 and all(len(orders[n.input[1]]) == batch * 144 for n in gathers)
    assert moves == 18 and not [n for n in after.graph.node if n.op_type in ("Slice", "Concat")]
    assert np.abs(run(after, x) - before).max() == 0


def test_zeros_that_complete_windows_are_added_and_dropped_as_before() -> None:
    model = windowed(10, 1)
    x = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3), dtype=np.uint8)
    before, g = run(model, x), GraphEditor(model)
    pads = sum(n.op_type == "Pad" for n in g.nodes)
    assert pads == 4 and windows.rewrite(g) == 2, "the way back, whose tokens are dropped after it"
    after = g.finish()
    assert sum(n.op_type == "Pad" for n in after.graph.node) == pads
    assert np.abs(run(after, x) - before).max() == 0


def test_what_adds_tokens_or_is_read_elsewhere_stays() -> None:
    """A constant row before the tokens (as attention registers are), or a second reader of a moved tensor."""
    constants = {"row": np.ones((1, 2, 8), np.float32), "four": np.array([1, 2, 4, 8]), "back": np.array([1, 8, 8])}
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Concat", ["row", "x"], ["joined"], "joined", axis=1),
        helper.make_node("Reshape", ["joined", "four"], ["grid"], "grid"),
        helper.make_node("Transpose", ["grid"], ["blocks"], "blocks", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["blocks", "back"], ["y"], "y"),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    y = [value("y", TensorProto.FLOAT, [1, 8, 8])]
    graph = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, [1, 6, 8])], y, tensors)
    assert not windows.rewrite(GraphEditor(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])))

    g = GraphEditor(windowed(12, 1))
    moved = next(n for n in g.nodes if n.op_type == "Concat")
    g.op("Identity", [moved.output[0]], "read elsewhere")
    assert windows.rewrite(g) == 3
