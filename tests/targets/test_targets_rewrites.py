"""The exact rewrites that several targets share, on graphs with groups, pruned widths and Q/DQ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from vitedge.data.preprocess import Preprocess
from vitedge.export.vit import export_vit
from vitedge.onnx_graph.editor import GraphEditor
from vitedge.quant import QuantOptions, calibrate, insert_qdq
from vitedge.targets.onnxruntime.rewrites import Form, apply, exact_here
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner
from vitedge.targets.rewrites import cls_attention, mlp_groups
from vitedge.vit.block import Merge
from vitedge.vit.config import uniform
from vitedge.vit.model import VisionTransformer, init_weights

PREPROCESS = Preprocess(resize=32, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)


def make_model() -> VisionTransformer:
    """Three blocks: values wider than keys, groups of MLP units, and a block that lost its attention."""
    config = uniform(image_size=32, patch_size=8, width=32, depth=3, heads=4, hidden=64, classes=10)
    first, second, last = config.blocks
    blocks = (
        replace(first, qk_dim=8, v_dim=16, groups=(16, 48)),
        replace(second, heads=0),
        replace(last, qk_dim=8, v_dim=16, groups=(16, 16, 32)),
    )
    model = init_weights(VisionTransformer(replace(config, blocks=blocks)), seed=3).eval()
    with torch.no_grad():  # attention that attends, biases that bias
        for name, parameter in model.named_parameters():
            if ".attention." in name or name.endswith("bias"):
                parameter.normal_(0, 0.5)
    return model


def float_graph(batch: int | None = 1) -> onnx.ModelProto:
    model = make_model()
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return export_vit(model.config, weights, PREPROCESS, batch)


def run(model: onnx.ModelProto) -> np.ndarray:
    onnx.checker.check_model(model)
    return OnnxRuntimeRunner(Path("memory"), threads=1, model=exact_here(model).SerializeToString()).infer(PIXELS)


def kinds(model: onnx.ModelProto, op: str) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type == op]


@pytest.mark.parametrize("batch", [1, 3, None])
def test_the_last_blocks_keys_and_values_are_folded_away(batch) -> None:
    graph = float_graph(batch)
    g = GraphEditor(graph)
    assert cls_attention.rewrite(g) == 1
    rewritten = g.finish()
    gone = ("block2.attention.k.m", "block2.attention.v.m")
    assert not any(name.startswith(gone) for name in kinds(rewritten, "MatMul"))
    assert "block0.attention.scores" in kinds(rewritten, "MatMul"), "only an attention with one query"
    before = run(graph)
    assert np.abs(run(rewritten) - before).max() < 1e-5 * np.ptp(before)


def test_groups_become_one_product_where_nothing_is_quantised() -> None:
    graph = float_graph()
    g = GraphEditor(graph)
    assert mlp_groups.rewrite(g) == 2
    rewritten = g.finish()
    assert len(kinds(rewritten, "Erf")) == 3 and not kinds(rewritten, "Split")
    before = run(graph)
    assert np.abs(run(rewritten) - before).max() < 1e-5 * np.ptp(before)


def test_quantised_groups_share_the_first_product_only() -> None:
    model = make_model()
    scheme = calibrate(
        model,
        lambda: iter([torch.from_numpy(PREPROCESS.normalize(PIXELS))]),
        QuantOptions(rounding="nearest", correct=False),
        PREPROCESS,
    )
    quantized = insert_qdq(float_graph(), scheme)
    g = GraphEditor(quantized)
    joined = mlp_groups.rewrite(g)
    rewritten = g.finish()
    assert joined >= 1 and kinds(rewritten, "Split")
    assert len(kinds(rewritten, "QuantizeLinear")) == len(kinds(quantized, "QuantizeLinear"))
    before = run(quantized)
    assert np.abs(run(rewritten) - before).max() < 0.02 * np.ptp(before)


def test_an_attention_with_quantised_products_is_left_alone() -> None:
    model = make_model()
    batches = lambda: iter([torch.from_numpy(PREPROCESS.normalize(PIXELS))])  # noqa: E731
    options = QuantOptions(preset="full", rounding="nearest", correct=False)
    quantized = insert_qdq(float_graph(), calibrate(model, batches, options, PREPROCESS))
    g = GraphEditor(quantized)
    assert cls_attention.rewrite(g) == 0
    assert mlp_groups.rewrite(g) == 1, "the last block's MLP, one token, is float"
    before = run(quantized)
    assert np.abs(run(g.finish()) - before).max() < 0.02 * np.ptp(before)


def test_a_removed_node_takes_what_only_it_read() -> None:
    g = GraphEditor(float_graph())
    count = len(g.nodes)
    # K's chain goes with the scores; LayerNorm stays, since q and v still read it.
    g.remove([g.makers["block0.attention.k.transposed"]])
    left = {node.name for node in g.nodes}
    assert not left & {"block0.attention.k", "block0.attention.k.split", "block0.attention.k.matmul"}
    assert "block0.norm1" in left and len(left) == count - 4


def merged_graph(batch: int | None, int8: bool) -> tuple[onnx.ModelProto, VisionTransformer]:
    """Tokens merged in two blocks, each image's own."""
    config = uniform(image_size=32, patch_size=8, width=32, depth=4, heads=2, hidden=64, classes=10)
    config = config.with_block(0, merge=Merge(12)).with_block(2, merge=Merge(8))
    model = init_weights(VisionTransformer(config), seed=3).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".attention." in name or name.endswith("bias"):
                parameter.normal_(0, 0.5)
    graph = export_vit(config, {name: t.numpy() for name, t in model.state_dict().items()}, PREPROCESS, batch)
    if int8:
        batches = lambda: iter([torch.from_numpy(PREPROCESS.normalize(PIXELS))])  # noqa: E731
        graph = insert_qdq(graph, calibrate(model, batches, QuantOptions(rounding="nearest"), PREPROCESS))
    return graph, model


@pytest.mark.parametrize("batch", [1, 4, None])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("attention", ["packed", "heads"])
def test_merged_tokens_keep_attention_fused(batch, int8, attention) -> None:
    """The sizes go into the fused kernels as a bias of the scores."""
    graph, _ = merged_graph(batch, int8)
    rewritten, counts = apply(graph, Form(attention, "joined"))
    assert counts["fused_attention"] == 3 and counts["cls_attention"] == 1
    assert len(kinds(rewritten, "Softmax")) == 1
    before, after = run(graph), run(rewritten)
    assert np.abs(after - before).max() <= (0.05 if int8 else 1e-5) * np.ptp(before)
