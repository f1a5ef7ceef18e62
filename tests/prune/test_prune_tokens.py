"""Pruning that merges tokens: alone, with widths, matched and constant."""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib import import_module

import pytest
import torch

from tests.prune.test_prune_run import images, model, run  # noqa: F401 (fixtures)
from tests.vit import variants
from vitedge import metrics
from vitedge.errors import VitedgeError
from vitedge.prune import PruneOptions, prune
from vitedge.prune.effects import Effects
from vitedge.prune.fit import Fit
from vitedge.prune.measure import measure_cuts
from vitedge.prune.plan import everything
from vitedge.prune.recover import Recovery, recover
from vitedge.prune.sensitivity import sensitivity
from vitedge.prune.spread import spread_plans
from vitedge.prune.store import embed_all, logits
from vitedge.prune.surgery import assemble
from vitedge.tokens.constant import cluster, mean_distances
from vitedge.tokens.modules import following, goals
from vitedge.train.features import block_outputs
from vitedge.vit.block import Merge
from vitedge.vit.config import ViTConfig, uniform
from vitedge.vit.macs import model_macs


def merges(config) -> list:
    return [block.merge for block in config.blocks if block.merge]


def test_tokens_alone(model, images) -> None:  # noqa: F811
    small, report = run(model, images, prune=0.12, prune_by="tokens")
    (merge,) = merges(small.config)
    assert merge.matched and len(merge.groups) == 17 and merge.left < 17
    assert [b.hidden for b in small.config.blocks] == [b.hidden for b in model.config.blocks]
    assert 0.12 <= 1 - model_macs(small.config) / model_macs(model.config) == report.removed
    assert report.layers[0].tokens == (17, merge.left) and report.held_out == 8 and report.kl is not None
    alike, _ = run(model, images, prune=0.12, prune_target="rknn", align=32, prune_by="tokens")
    assert not merges(alike.config)[0].matched


@pytest.mark.parametrize("solving_helps", [False, True])
def test_what_is_not_cut_is_solved_anew_where_it_helps(model, images, monkeypatch, solving_helps) -> None:  # noqa: F811
    """Merging cuts no weights: they change only where the held-out images are nearer with layers solved anew."""
    tried: list[int] = []

    def judged(dense, small, held):
        tried.append(1)
        return None, 1 / len(tried) if solving_helps else float(len(tried))

    monkeypatch.setattr(import_module("vitedge.prune.trial"), "fidelity", judged)
    small, _ = run(model, images, prune=0.12, prune_by="tokens")
    new = small.state_dict()
    same = all(torch.equal(new[name], weight) for name, weight in model.state_dict().items())
    assert len(tried) == 2 and same != solving_helps


@pytest.mark.usefixtures("float32_products")
@pytest.mark.parametrize("merge", ["matched", "constant"])
def test_the_harm_of_a_merge_is_what_the_logits_lose(model, images, merge) -> None:  # noqa: F811
    """Tried block by block, it is the divergence of the model that merges there alone, on the images left out of the
    closed forms."""
    start = embed_all(model, lambda: iter(images.split(32)), 1, 0)
    measured = measure_cuts(model, start, PruneOptions(prune=0.1, merge=merge))
    held = start[measured.solved :]
    expected = logits(model, 0, held)
    compared = 0
    for index, (effects, found) in enumerate(zip(measured.effects, measured.candidates, strict=True)):
        assert set(effects.tokens) == set(found.tokens)
        for left, groups in found.tokens.items():
            if left < 1 + (model.config.tokens - 1) // 2:
                continue  # several matchings, one on what the other left
            config = model.config.with_block(index, merge=Merge(left, groups or (), matched=groups is None))
            merged = model.fresh(config).eval()
            merged.load_state_dict(model.state_dict())
            found_kl = metrics.kl(expected, logits(merged, 0, held))
            assert effects.tokens[left] == pytest.approx(found_kl, rel=1e-2)  # streams are kept in half precision
            compared += effects.tokens[left] > 0
    assert compared >= 4


def test_the_plan_of_least_divergence_is_taken(model, images, monkeypatch) -> None:  # noqa: F811
    """Plans with tokens at several weights and of tokens alone are tried; here the last one comes out best."""
    tried: list[ViTConfig] = []

    def judged(dense, small, held):
        tried.append(small.config)
        return None, 1 / len(tried)

    monkeypatch.setattr(import_module("vitedge.prune.trial"), "fidelity", judged)
    small, _ = run(model, images, prune=0.12, recover="ridge")
    assert len(tried) > 1 and small.config.blocks[0].hidden == tried[-1].blocks[0].hidden
    assert [m.left for m in merges(small.config)] == [m.left for m in merges(tried[-1])]
    assert any(merges(c) and [b.hidden for b in c.blocks] == [b.hidden for b in model.config.blocks] for c in tried)


@pytest.mark.parametrize("merge", ["matched", "constant"])
def test_spread_merges_save_the_share(merge: str) -> None:
    """The same share of the tokens in each of four blocks, no fewer MACs than asked for and hardly more."""
    config = uniform(image_size=224, patch_size=16, width=64, depth=12, heads=2, hidden=256, classes=10)
    effects = [Effects(tokens={150: 0.01, 100: 0.03}) for _ in range(11)] + [Effects()]
    for share in (0.1, 0.3, 0.5):
        found = list(spread_plans(config, effects, PruneOptions(prune=share, merge=merge)))
        assert found
        for plans, harm in found:
            left = {i: plan.left for i, plan in enumerate(plans) if plan.left}
            merged, tokens = config, config.tokens
            for index, new in left.items():
                groups = tuple(min(n, new - 1) for n in range(tokens)) if merge == "constant" else ()
                merged, tokens = merged.with_block(index, merge=Merge(new, groups, not groups)), new
            assert len(left) == 4 and share <= 1 - model_macs(merged) / model_macs(config) < share + 0.02 and harm > 0
    assert not list(spread_plans(config, effects, PruneOptions(prune=0.9, merge=merge)))


def test_what_cannot_be_is_said(model, images) -> None:  # noqa: F811
    with pytest.raises(VitedgeError, match="cannot sort"):
        run(model, images, prune_target="rknn", merge="matched", align=32)
    with pytest.raises(VitedgeError, match="is the most"):
        run(model, images, prune=0.8, prune_by="tokens")


def test_the_mean_of_the_dense_tokens_is_what_a_merged_one_is_solved_for(model, images) -> None:  # noqa: F811
    """Closed form and gradient steps bring each block's merged tokens nearer to the means of the dense ones."""
    plans = [everything(block) for block in model.config.blocks]
    plans[0] = replace(plans[0], left=9)
    start = embed_all(model, lambda: iter(images.split(16)), 1, 0)
    found = {}
    for method in ("none", "block"):
        small = copy.deepcopy(model)
        how = Recovery(method, 1e-4, 96, Fit(40, 16, 1e-3))
        found[method] = [e.fitted for e in recover(model, small, plans, start, how, 0, lambda n: None)]
        assert assemble(small).config.block_tokens(0).mlp == 9
    assert all(fitted < plain for fitted, plain in zip(found["block"], found["none"], strict=True))


def test_clusters_are_what_is_near(model, images) -> None:  # noqa: F811
    distances = torch.full((6, 6), 2.0)
    for pair in ((0, 3), (1, 4)):
        distances[pair] = distances[pair[::-1]] = 0.1
    distances[2, 5] = distances[5, 2] = 0.5
    groups = cluster(distances, torch.ones(6), 5, prefix=1)
    assert groups == (0, 1, 2, 3, 1, 2, 4)
    assert cluster(distances, torch.ones(6), 4, prefix=1) == (0, 1, 2, 3, 1, 2, 3)
    streams = [torch.randn(4, 9, 16) for _ in range(2)]
    found, sizes = mean_distances(streams, 16, 1)
    assert found.shape == (8, 8) and torch.equal(sizes, torch.ones(8)) and found.diagonal().abs().max() < 1e-4


def test_the_teachers_tokens_are_those_of_the_student(model, images) -> None:  # noqa: F811
    small, _ = run(model, images, prune=0.12, prune_by="tokens", recover="ridge")
    with torch.no_grad(), block_outputs(small) as made, block_outputs(model) as outputs, following(model, small):
        small(images[:4])
        model(images[:4])
        wanted = goals(outputs, model, small)
    assert [g.shape[1] for g in wanted] == [m.shape[1] for m in made]
    merge = next(small.encoder()).merge
    assert torch.allclose(wanted[0][:, 0], outputs[0][:, 0])
    alone = merge.chosen[0].bincount() == 1
    first = int((merge.chosen[0] == int(alone.nonzero()[-1])).nonzero()[0])
    assert torch.allclose(wanted[0][0, int(alone.nonzero()[-1])], outputs[0][0, first], atol=1e-6)


def test_the_price_of_tokens_is_told(model, images) -> None:  # noqa: F811
    options = PruneOptions(align=16, min_hidden=16)
    found = sensitivity(model, lambda: iter(images[:64].split(16)), options, [0.2])
    assert {p.layer for p in found.points} >= {"total", "block0.tokens", "block0.mlp", "block1.attention"}
    assert "block1.tokens" not in {p.layer for p in found.points}  # nothing after the last block reads fewer


@pytest.mark.parametrize("name", ["rope and swiglu", "patches"])
def test_tokens_with_a_place_are_not_merged(name: str) -> None:
    """Widths alone are cut then, and who asks for tokens is told why not."""
    config = variants.VARIANTS[name]
    with pytest.raises(VitedgeError, match="can't be merged") as told:
        config.with_block(0, merge=Merge(config.prefix + 2))
    assert "widths" in told.value.todo
    pixels = variants.images(config, 32)
    with pytest.raises(VitedgeError, match="can't be merged"):
        prune(variants.make(config), lambda: iter(pixels.split(16)), PruneOptions(prune=0.1, prune_by="tokens"))
