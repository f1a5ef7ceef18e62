"""Pruning as a whole, on a ViT of two blocks."""

from __future__ import annotations

import copy
import subprocess
import sys
from importlib import import_module

import pytest
import torch

from vitedge.errors import VitedgeError
from vitedge.metrics import kl
from vitedge.prune import PruneOptions, prune
from vitedge.vit.macs import model_macs, model_params
from vitedge.vit.model import VisionTransformer, init_weights


@pytest.fixture
def model(tiny_config) -> VisionTransformer:
    """Random weights large enough that every layer matters, with an outlier channel."""
    model = init_weights(VisionTransformer(tiny_config), seed=1).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and parameter.ndim > 1:
                parameter *= 2
            elif name.endswith("bias") and "norm" not in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        model.pos_embedding[..., 7] += 4
    return model


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(96, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear") * 2


def run(model: VisionTransformer, images: torch.Tensor, **options):
    chosen = PruneOptions(**({"prune": 0.3, "align": 8, "min_hidden": 8, "fit_steps": 20} | options))
    return prune(model, lambda: iter(images[:64].split(16)), chosen)


@torch.no_grad()
def harm(model: VisionTransformer, other: VisionTransformer, images: torch.Tensor) -> float:
    return kl(model(images), other(images))


@pytest.mark.parametrize("unit", ["macs", "params"])
@pytest.mark.parametrize("share", [0.15, 0.3, 0.5])
def test_the_share_is_met(model, images, unit: str, share: float) -> None:
    fine = {"align": 2, "head_align": 2, "min_hidden": 2, "recover": "ridge"}
    small, report = run(model, images, prune=share, prune_unit=unit, **fine)
    counted = model_macs if unit == "macs" else model_params
    removed = 1 - counted(small.config) / counted(model.config)
    assert share <= removed <= share + 0.01
    assert report.removed == removed
    assert report.macs == (model_macs(model.config), model_macs(small.config))
    assert sum(p.numel() for p in small.parameters()) == model_params(small.config)
    for block in small.config.blocks:
        assert block.heads >= 1 and block.qk_dim % 2 == 0 and block.v_dim % 2 == 0 and block.hidden % 2 == 0


def test_each_way_to_recover_loses_less_than_the_one_before(model, images) -> None:
    held = images[64:]
    losses = {}
    for way in ("none", "ridge", "block"):
        small, _ = run(model, images, recover=way, fit_steps=120)
        losses[way] = harm(model, small, held)
    assert losses["ridge"] < 0.8 * losses["none"]
    assert losses["block"] < 0.9 * losses["ridge"]


def test_same_seed_same_bytes_and_the_model_is_left_alone(model, images) -> None:
    before = copy.deepcopy(model.state_dict())
    first, report = run(model, images)
    second, again = run(model, images)
    assert first.config == second.config
    assert report.layers == again.layers
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not first.training and type(first.blocks[0]).__name__ == "Block"


def test_pruning_nothing_changes_nothing(model, images) -> None:
    small, report = run(model, images, prune=None)
    assert small.config == model.config and report.removed == 0
    for name, value in model.state_dict().items():
        assert torch.equal(small.state_dict()[name], value), name


def test_dead_units_go_first_and_exactly(model, images) -> None:
    dead = [3, 9, 17, 20, 33, 40, 41, 60]
    with torch.no_grad():
        for block in model.encoder():
            block.mlp.fc2.weight[:, dead] = 0
            block.mlp.fc1.weight[dead] = 0
    share = 2 * 32 * 8 * (17 + 1) / model_macs(model.config)  # of the last block, [CLS] alone is exported
    small, report = run(model, images, prune=share * 0.999, recover="none", head_align=0, min_heads=2)
    assert [b.hidden for b in small.config.blocks] == [56, 56]
    assert report.predicted_kl < 1e-9
    with torch.no_grad():
        assert torch.allclose(small(images), model(images), atol=1e-5)


@pytest.mark.parametrize("importance", ["obs", "hessian", "taylor", "magnitude"])
def test_every_importance_keeps_the_units_that_matter(model, images, importance: str) -> None:
    weak = list(range(0, 64, 2))
    with torch.no_grad():
        for block in model.encoder():
            block.mlp.fc2.weight[:, weak] *= 1e-3
    small, _ = run(model, images, prune=0.2, importance=importance, recover="none", head_align=0, min_heads=2)
    with torch.no_grad():
        for block, old in zip(small.encoder(), model.encoder(), strict=True):
            strong = old.mlp.fc1.weight[1::2]
            kept = (strong[:, None] == block.mlp.fc1.weight[None]).all(-1).any(1)
            assert int(kept.sum()) == min(32, block.mlp.config.hidden)


def test_a_pruned_model_is_pruned_again(model, images) -> None:
    once, _ = run(model, images, prune=0.5, recover="ridge", min_heads=0, min_hidden=0)
    twice, report = run(once, images, prune=0.2, min_heads=0, min_hidden=0)
    assert 0.2 <= 1 - model_macs(twice.config) / model_macs(once.config) < 0.31
    assert report.macs[0] == model_macs(once.config)
    with torch.no_grad():
        assert twice(images).isfinite().all()


def test_whole_halves_may_go(model, images) -> None:
    small, _ = run(model, images, prune=0.66, min_heads=0, min_hidden=0, fit_steps=5)
    assert any(b.heads == 0 or b.hidden == 0 for b in small.config.blocks)
    with torch.no_grad():
        assert small(images).shape == (96, 10)


def test_folded_norms_stay_folded(model, images) -> None:
    with torch.no_grad():
        for block in model.encoder():
            for norm in (block.norm1, block.norm2):
                norm.weight.fill_(1)
                norm.bias.zero_()
    small, _ = run(model, images)
    for block in small.encoder():
        for norm in (block.norm1, block.norm2):
            assert torch.equal(norm.weight, torch.ones(32)) and not norm.bias.any()


def test_groups_and_scale_of_a_conditioned_model(model, images) -> None:
    conditioned = VisionTransformer(model.config.with_block(0, groups=(16, 48)))
    conditioned.load_state_dict(model.state_dict())
    small, _ = run(conditioned, images, recover="ridge")
    assert small.config.blocks[0].hidden == 64 or small.config.blocks[0].groups == ()
    assert small.config.blocks[0].scale == model.config.blocks[0].scale


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_sparsity(model, images, pattern: str) -> None:
    small, report = run(model, images, prune=None, sparsity=pattern)
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    weights = small.blocks[1].mlp.fc1.weight
    assert float((weights == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert harm(model, small, images[64:]) < harm(model, plain_zeros(model), images[64:])


def plain_zeros(model: VisionTransformer) -> VisionTransformer:
    """The smallest half of each weight set to zero, nothing made up for."""
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        for name, layer in zeroed.linears().items():
            if name.startswith("block"):
                layer.weight[layer.weight.abs() < layer.weight.abs().median()] = 0
    return zeroed


def test_sigmoid_head(model, images) -> None:
    from dataclasses import replace

    several = VisionTransformer(replace(model.config, activation="sigmoid"))
    several.load_state_dict(model.state_dict())
    small, report = run(several, images)
    assert small.config.activation == "sigmoid" and report.removed >= 0.3


@pytest.mark.parametrize("share", [0.0, -0.1, 0.95, float("nan")])
def test_shares_out_of_range(share: float) -> None:
    with pytest.raises(VitedgeError, match=r"at most 0\.9"):
        PruneOptions(prune=share)


@pytest.mark.parametrize("sparsity", ["1", "0", "4:8", "half"])
def test_sparsities_out_of_range(sparsity: str) -> None:
    with pytest.raises(VitedgeError, match=r"such as 0\.5, or 2:4"):
        PruneOptions(sparsity=sparsity)


def test_a_share_that_the_constraints_forbid_names_the_nearest(model, images) -> None:
    with pytest.raises(VitedgeError, match="Ask for at most 0") as caught:
        run(model, images, prune=0.5, align=64, min_hidden=64)
    nearest = float(caught.value.todo.split("at most ")[1].split(",")[0])
    small, _ = run(model, images, prune=nearest, align=64, min_hidden=64, recover="ridge")
    assert 1 - model_macs(small.config) / model_macs(model.config) >= nearest


def test_an_alignment_larger_than_any_layer(model, images) -> None:
    with pytest.raises(VitedgeError, match="--align 64"):
        run(model, images, align=65)


def test_widths_that_a_target_rewards(model, images) -> None:
    small, _ = run(model, images, prune=0.2, prune_target="onnxruntime", recover="ridge", min_hidden=16)
    for block in small.config.blocks:
        assert block.hidden % 16 == 0 and block.qk_dim == block.v_dim == 16
    with pytest.raises(VitedgeError, match="Choose one of onnxruntime, openvino, tensorrt, rknn, or set --align"):
        run(model, images, prune_target="abacus")


def test_too_few_images(model, images) -> None:
    with pytest.raises(VitedgeError, match="at least 16 images"):
        prune(model, lambda: iter(images[:8].split(4)), PruneOptions(prune=0.3))


def test_options_import_no_torch() -> None:
    code = "import sys, vitedge.prune; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_report_is_json(model, images) -> None:
    import json

    _, report = run(model, images, recover="ridge")
    assert json.loads(json.dumps(report.to_dict()))["asked"] == 0.3
    assert all(len(row) == len(table.columns) for table in report.tables() for row in table.rows)


def test_what_was_measured_of_a_model_serves_every_share(model, images, monkeypatch) -> None:
    measure = import_module("vitedge.prune.measure")
    alone = [run(model, images, prune=share, recover="ridge")[0].state_dict() for share in (0.2, 0.4)]
    made: list[int] = []
    real = measure._measure

    def counted(*arguments):
        made.append(1)
        return real(*arguments)

    monkeypatch.setattr(measure, "_measure", counted)
    with measure.remembered():
        shared = [run(model, images, prune=share, recover="ridge")[0].state_dict() for share in (0.2, 0.4)]
        assert len(made) == 1
        for other in ({"align": 16}, {"prune_by": "widths"}):
            run(model, images, recover="ridge", **other)
        with torch.no_grad():
            model.blocks[0].mlp.fc1.weight *= 1.01
        run(model, images, recover="ridge")
    assert len(made) == 4
    for before, after in zip(alone, shared, strict=True):
        assert all(torch.equal(weight, after[name]) for name, weight in before.items())
