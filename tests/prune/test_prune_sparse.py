"""Zeros are made after conditioning, recovered, and kept by everything after."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from vitedge.condition import ConditionOptions, condition
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.export.vit import export_vit
from vitedge.prune import PruneOptions
from vitedge.prune.run import sparsify
from vitedge.prune.zeros import check_zeros, has_two_of_four, two_of_four, weights_of
from vitedge.quant import calibrate, insert_qdq, quantize_dynamic, round_weights
from vitedge.quant.learned import LearnedLinear
from vitedge.vit.model import VisionTransformer, init_weights

PRE = Preprocess(resize=32, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    coarse = torch.randn(48, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear") * 2


@pytest.fixture(scope="module")
def conditioned(tiny_config, images) -> VisionTransformer:
    model = init_weights(VisionTransformer(tiny_config), seed=1).eval()
    return condition(model, lambda: iter(images.split(16)), ConditionOptions(images=32))[0]


def graph_of(model: VisionTransformer) -> onnx.ModelProto:
    return export_vit(model.config, {k: v.numpy() for k, v in model.state_dict().items()}, PRE, 1)


@pytest.mark.parametrize("pattern", ["0.4", "2:4"])
def test_zeros_reach_every_graph(conditioned, images, pattern: str) -> None:
    batches = lambda: iter(images.split(16))  # noqa: E731
    sparse, facts = sparsify(conditioned, batches, PruneOptions(sparsity=pattern, fit_steps=20))
    assert facts["zeros"] == pytest.approx(0.5 if pattern == "2:4" else 0.4, abs=0.01)
    assert all(".mlp." in name for name in facts["layers"]) == (pattern == "2:4")
    plain = graph_of(sparse)
    scheme = calibrate(sparse, batches, preprocess=PRE)
    graphs = {
        "float": plain,
        "static": insert_qdq(plain, scheme),
        "dynamic": quantize_dynamic(plain, round_weights(sparse, batches, preprocess=PRE)),
    }
    for name, graph in graphs.items():
        assert check_zeros(graph, facts) >= facts["zeros"] - 1e-3, name
        assert has_two_of_four(graph) == (pattern == "2:4"), name
    with pytest.raises(VitedgeError, match="later step filled"):
        check_zeros(graph_of(conditioned), facts)


def test_the_fit_recovers(conditioned, images) -> None:
    made = {}
    for recover in ("none", "block"):
        options = PruneOptions(sparsity="2:4", fit_steps=60, recover=recover)
        sparse, _ = sparsify(conditioned, lambda: iter(images[:40].split(8)), options)
        with torch.no_grad():
            made[recover] = float((sparse(images[40:]) - conditioned(images[40:])).square().mean())
    assert made["block"] < made["none"]


def test_training_in_int8_keeps_zeros() -> None:
    linear = torch.nn.Linear(16, 8)
    with torch.no_grad():
        linear.weight[:, ::2] = 0
    layer = LearnedLinear(linear, torch.full((8, 1), 0.01), (16,), 8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(3):
        layer(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
    assert (layer.integers()[:, ::2] == 0).all() and (layer.rounded()[:, ::2] == 0).all()
    assert (layer.integers()[:, 1::2] != 0).any()


def test_the_pattern_is_along_the_inputs() -> None:
    weight = np.ones((8, 6), np.float32)
    weight[::2] = 0
    assert two_of_four(weight) and not two_of_four(weight.T[:4])
    weight[0, 3] = 1  # three of four in one output
    assert not two_of_four(weight)
    assert not two_of_four(np.zeros((6, 4), np.float32))


def test_weights_of_groups_belong_to_their_linear(conditioned) -> None:
    names = ["block0.mlp.fc1"]
    found = list(weights_of(graph_of(conditioned), names))
    assert sum(w.shape[1] for w in found) == conditioned.config.blocks[0].hidden
