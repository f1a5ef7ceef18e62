"""What is folded around reduced keys and values, and units before a depthwise convolution: exact, and to some end."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.vit.test_vit_variants import apart, of
from tests.vit.variants import VARIANTS, images, make
from vitedge.condition import ConditionOptions, condition
from vitedge.condition.apply import batched
from vitedge.condition.fold import fold_norms
from vitedge.condition.ranges import measure
from vitedge.condition.smooth import smooth_norms
from vitedge.condition.units import scale_units

NAMES = ["pyramid", "pyramid of pooled tokens"]


@pytest.mark.parametrize("name", NAMES)
def test_norms_are_folded_into_linears_that_read_tokens_side_by_side(name: str) -> None:
    model, x = make(VARIANTS[name]), images(VARIANTS[name])
    changed = copy.deepcopy(model)
    fold_norms(changed)
    assert apart(of(model, x), of(changed, x)) < 1e-5
    for block in changed.encoder():
        assert block.norm1 is not None and block.attention is not None
        assert bool((block.norm1.weight == 1).all()) and not block.norm1.bias.any()
    reduction = next(iter(changed.encoder())).attention.reduction  # type: ignore[union-attr]
    assert reduction is not None
    # GELU stands between the pooled form's LayerNorm and what reads it.
    assert bool((reduction.norm.weight == 1).all()) == (name == "pyramid")
    before = copy.deepcopy(changed)
    smooth_norms(changed, [x])
    assert apart(of(before, x), of(changed, x)) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_units_before_a_depthwise_convolution_get_one_range(name: str) -> None:
    model, x = make(VARIANTS[name]), images(VARIANTS[name])
    with torch.no_grad():
        for block in model.encoder():
            block.mlp.fc1.weight[3] *= 30  # type: ignore[union-attr]
            block.mlp.fc1.weight[5], block.mlp.fc1.bias[5] = 0, -1  # type: ignore[union-attr]  # never fires behind ReLU
    changed = copy.deepcopy(model)
    chosen = scale_units(changed, [x])
    assert apart(of(model, x), of(changed, x)) < 1e-5
    stats = measure(changed, [x], chosen)
    for index, site in enumerate(chosen):
        relu, stat = changed.config.blocks[index].relu, stats[site]
        reach = stat.maximum if relu else stat.absmax
        reach = reach[reach > 0]
        assert chosen[site] > 10 and float(reach.max() / reach.min()) < 1.001


def test_why_nothing_is_rotated_is_said() -> None:
    model, x = make(VARIANTS["pyramid"]), images(VARIANTS["pyramid"])
    _, report = condition(model, batched(x), ConditionOptions(registers=False, rotate="learned"))
    chosen = {step.name: step.chosen for step in report.steps}
    assert chosen["rotate"]["kind"] == "off" and "LayerNorms write to the stream" in chosen["rotate"]["reason"]
    assert {f"block{i}.mlp.fc1" for i in range(4)} <= chosen["balance"].keys()
