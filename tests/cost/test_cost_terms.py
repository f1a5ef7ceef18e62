"""A plan's work, counted from its configuration and from its exported graph."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.vit.variants import VARIANTS
from vitedge.cost.graph import graph_terms
from vitedge.cost.plans import draw_plans
from vitedge.cost.terms import model_terms, totals
from vitedge.data.preprocess import Preprocess
from vitedge.export.vit import export_vit
from vitedge.vit.block import Merge
from vitedge.vit.config import ViTConfig, uniform
from vitedge.vit.macs import model_macs
from vitedge.vit.model import VisionTransformer, init_weights


@pytest.fixture(scope="module")
def dense() -> ViTConfig:
    return uniform(image_size=64, patch_size=8, width=48, depth=4, heads=3, hidden=96, classes=10)


def graph_of(config: ViTConfig):
    weights = {k: v.numpy() for k, v in init_weights(VisionTransformer(config), 0).state_dict().items()}
    return export_vit(config, weights, Preprocess(resize=64, crop=64, mean=(0.5,) * 3, std=(0.5,) * 3))


def plans(dense: ViTConfig) -> list[ViTConfig]:
    constant = tuple(min(n, 39) for n in range(dense.tokens))
    own = [dense, dense.with_block(1, merge=Merge(40, constant, matched=False)), dense.with_block(2, hidden=0)]
    stems = [VARIANTS["resnet stem"], replace(VARIANTS["convolutional stem"], channels=3)]
    return own + stems + draw_plans(dense, 6, seed=3)


def test_the_graph_has_the_work_of_its_plan(dense: ViTConfig) -> None:
    for config in plans(dense):
        assert totals(graph_terms(graph_of(config))) == totals(model_terms(config)), config


@pytest.mark.parametrize("name", ["windows and stages", "cosine attention and norms after"])
def test_the_graph_of_several_stages_has_the_work_of_its_plan(name: str) -> None:
    config = VARIANTS[name]
    for plan in [config, *draw_plans(config, 4, seed=3, align=8)]:
        work = totals(model_terms(plan))
        assert totals(graph_terms(graph_of(plan))) == work, plan
        assert work["patches"] + work["linear"] + work["attention"] == model_macs(plan)


def test_macs_are_those_that_everything_else_counts(dense: ViTConfig) -> None:
    for config in plans(dense):
        work = totals(model_terms(config))
        # Attention's sizes are merged by a further product of one column.
        assert work["patches"] + work["linear"] + work["attention"] == pytest.approx(model_macs(config), rel=0.005)


def test_drawn_plans_differ_and_come_again(dense: ViTConfig) -> None:
    drawn = draw_plans(dense, 8, seed=1)
    assert drawn == draw_plans(dense, 9, seed=1)[:8]
    assert len(set(drawn)) == 8
    shares = [model_macs(plan) / model_macs(dense) for plan in drawn]
    assert min(shares) < 0.5 < 0.7 < max(shares)
    assert any(block.merge for plan in drawn for block in plan.blocks)
