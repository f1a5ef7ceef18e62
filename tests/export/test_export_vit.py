"""The exported graph: the same logits as PyTorch, clean, and with names that match the model's."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch

from vitedge.data.preprocess import Preprocess
from vitedge.export.vit import export_vit, fold_normalization
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner
from vitedge.vit.block import Merge
from vitedge.vit.config import uniform
from vitedge.vit.model import VisionTransformer, init_weights

PREPROCESS = Preprocess(resize=32, crop=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def pixels(n: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def graph_of(model: VisionTransformer, batch: int | None = 1) -> onnx.ModelProto:
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return export_vit(model.config, weights, PREPROCESS, batch)


def run(graph: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    from pathlib import Path

    return OnnxRuntimeRunner(Path("in memory"), threads=1, model=graph.SerializeToString()).infer(images)


def expected(model: VisionTransformer, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(PREPROCESS.normalize(images))).numpy()


@pytest.mark.parametrize("batch", [1, 4, None])
def test_equals_pytorch(tiny_model, batch) -> None:
    images = pixels(6)  # a batch of 4 is run as 4 and a padded 2
    want = expected(tiny_model, images)
    assert np.abs(run(graph_of(tiny_model, batch), images) - want).max() < 1e-5 * np.ptp(want)


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": 1},
        {"qk_dim": 8},
        {"v_dim": 8},
        {"hidden": 32},
        {"groups": (40, 16, 8)},
        {"heads": 0},
        {"hidden": 0},
        {"heads": 0, "hidden": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("index", [0, 1])
def test_uneven_widths(tiny_config, changes, index) -> None:
    model = init_weights(VisionTransformer(tiny_config.with_block(index, **changes)), seed=2).eval()
    images = pixels(2)
    want = expected(model, images)
    assert np.abs(run(graph_of(model, None), images) - want).max() < 1e-5 * np.ptp(want)


GROUPS = (0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8)
MERGES = {
    "matched": {0: Merge(13), 1: Merge(9)},
    "one left over": {0: Merge(12), 1: Merge(7)},
    "alike": {0: Merge(9, GROUPS, matched=False), 1: Merge(5, (0, 1, 1, 2, 2, 3, 3, 4, 4), matched=False)},
}


@pytest.mark.parametrize("batch", [1, 4, None])
@pytest.mark.parametrize("merges", MERGES.values(), ids=MERGES)
def test_merged_tokens_equal_pytorch(batch, merges) -> None:
    config = uniform(image_size=32, patch_size=8, width=32, depth=4, heads=2, hidden=64, classes=10)
    for index, how in merges.items():
        config = config.with_block(index, merge=how)
    model, images = init_weights(VisionTransformer(config), seed=2).eval(), pixels(6)
    want, graph = expected(model, images), graph_of(model, batch)
    assert np.abs(run(graph, images) - want).max() < 1e-5 * np.ptp(want)
    counts = Counter(node.op_type for node in graph.graph.node)
    assert counts["TopK"] == sum(how.matched for how in merges.values())
    assert not {op for op in counts if "Scatter" in op}
    assert set(model.sites()) <= {output for node in graph.graph.node for output in node.output}


def test_names_and_operators(tiny_model) -> None:
    graph = graph_of(tiny_model).graph
    values = {output for node in graph.node for output in node.output}
    assert set(tiny_model.sites()) <= values
    assert all(node.name == node.output[0] for node in graph.node[:-1])
    counts = Counter(node.op_type for node in graph.node)
    assert not {"Identity", "Gather", "Squeeze", "Unsqueeze", "Constant", "Shape"} & set(counts)
    assert counts["LayerNormalization"] == 5 and counts["Softmax"] == 2
    assert counts["MatMul"] == 2 * (6 + 2) + 1 and counts["Conv"] == 1
    assert [i.name for i in graph.input] == ["pixels"]
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [1, 32, 32, 3]
    assert [o.name for o in graph.output] == ["logits"]


def test_last_block_computes_cls_alone(tiny_model) -> None:
    inferred = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph_of(tiny_model).graph.value_info
    }
    assert inferred["block0.mlp.fc1"] == [1, 17, 64]
    assert inferred["block1.mlp.fc1"] == [1, 1, 64]
    assert inferred["block1.attention.k"] == [1, 17, 32]
    assert inferred["block1.attention.scores"] == [1, 2, 1, 17]


def test_normalisation_is_folded_exactly() -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(5, 3, 4, 4)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    image = rng.integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    folded, shifted = fold_normalization(weight, bias, PREPROCESS.mean, PREPROCESS.std)
    want = np.einsum("nchw,dchw->d", PREPROCESS.normalize(image).astype(np.float64), weight) + bias
    found = np.einsum("nhwc,dchw->d", image.astype(np.float64), folded) + shifted
    assert np.allclose(found, want, atol=1e-4)


def test_same_weights_same_bytes(tiny_model) -> None:
    assert graph_of(tiny_model).SerializeToString() == graph_of(tiny_model).SerializeToString()
