"""The pure parts of conditioning, against what they promise."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from vitedge.condition import ConditionOptions, condition
from vitedge.condition.apply import batched
from vitedge.condition.groups import choose_groups, group_noise
from vitedge.condition.heads import balancing
from vitedge.condition.massive import find_massive, scale_massive
from vitedge.condition.orthogonal import (
    flat_basis,
    hadamard,
    hadamard_rotation,
    random_rotation,
    spreading_rotation,
)
from vitedge.condition.ranges import ChannelStats, measure
from vitedge.condition.smooth import product_noise, smooth_scales
from vitedge.errors import VitedgeError
from vitedge.vit.config import uniform
from vitedge.vit.model import VisionTransformer, init_weights


@pytest.mark.parametrize("size", [1, 2, 4, 12, 20, 24, 64, 192, 384, 768])
def test_hadamard(size: int) -> None:
    matrix = hadamard(size)
    assert matrix is not None
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(matrix.abs(), torch.full_like(matrix, 1 / math.sqrt(size)))
    assert (matrix[0] > 0).all()


@pytest.mark.parametrize("size", [21, 36, 100])
def test_flat_basis_without_hadamard(size: int) -> None:
    matrix = flat_basis(size)
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(matrix[0], torch.full((size,), 1 / math.sqrt(size), dtype=torch.float64))
    assert matrix.abs().max() <= math.sqrt(2 / size) + 1e-9


@pytest.mark.parametrize("size", [24, 21, 192])
def test_rotations_keep_ones(size: int) -> None:
    x = torch.randn(50, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x -= x.mean(1, keepdim=True)
    for q in (random_rotation(size, 0), hadamard_rotation(size, 0), spreading_rotation(x.T @ x, 0)):
        ones = torch.ones(size, dtype=torch.float64)
        assert torch.allclose(q @ ones, ones, atol=1e-9)
        assert torch.allclose(q @ q.T, torch.eye(size, dtype=torch.float64), atol=1e-9)


def test_spreading_flattens_a_massive_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 24, dtype=torch.float64, generator=generator)
    x[:8, 3] += 300
    x -= x.mean(1, keepdim=True)
    q = spreading_rotation(x.T @ x, 0)
    norm = x[:8].norm(dim=1).max()
    assert (x @ q.T).abs().max() < 1.1 * norm / math.sqrt(24)
    energy = (x @ q.T).square().mean(0)
    assert energy.max() / energy.min() < 1.01


def test_balancing_equalises() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(500, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    q, k = q * torch.logspace(-1, 1, 8), k * 5
    to_q, to_k = balancing(q.T @ q / 500, k.T @ k / 500)
    assert torch.allclose((q @ to_q.T) @ (k @ to_k.T).T, q @ k.T, rtol=1e-6, atol=1e-8)
    energy = torch.cat([(q @ to_q.T).square().mean(0), (k @ to_k.T).square().mean(0)])
    assert energy.max() / energy.min() < 1.3


def test_balancing_of_what_never_varies() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 8, dtype=torch.float64)
    rounding = -1e-9 * torch.eye(8, dtype=torch.float64)  # a covariance of constants: E[xx] - mean^2
    for pair in ((x.T @ x, rounding), (rounding, x.T @ x), (rounding, torch.zeros_like(rounding))):
        a, b = balancing(*pair)
        torch.testing.assert_close(a.T @ b, torch.eye(8, dtype=torch.float64), atol=1e-6, rtol=0)


def test_smoothing_helps_with_an_outlier_and_is_off_without() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 16, generator=generator)
    flat = ChannelStats.empty(16)
    flat.update(torch.rand(200, 16, generator=generator) * 2 - 1)
    _, alpha = smooth_scales(flat, weight.sign())
    assert alpha == 0
    sharp = ChannelStats.empty(16)
    sharp.update((torch.rand(200, 16, generator=generator) * 2 - 1) * torch.tensor([40.0] + [1.0] * 15))
    scales, alpha = smooth_scales(sharp, weight)
    assert alpha > 0 and scales[0] > scales[1:].max()
    before = product_noise(sharp.absmax, sharp.energy, weight)
    assert product_noise(sharp.absmax / scales, sharp.energy / scales**2, weight * scales) < before


def test_dead_channels_are_left_alone() -> None:
    stat = ChannelStats.empty(4)
    stat.update(torch.tensor([[0.0, 1.0, -9.0, 0.1]]))
    scales, _ = smooth_scales(stat, torch.tensor([[1.0, 0.0, 1.0, 2.0], [3.0, 0.0, 0.1, 1.0]]))
    assert torch.isfinite(scales).all() and scales[0] == scales[1] == 1


def test_groups_where_few_units_make_the_range() -> None:
    columns = torch.ones(96)
    few = torch.cat([torch.full((4,), 50.0), torch.linspace(5, 4, 92)])
    power = (few / 8).square()
    power[30:42] = 1e-6  # reach far, but seldom: the far-out units' group is filled up with them
    groups = choose_groups(few, power, columns, 3, 4.0, 16)
    assert torch.equal(torch.cat(groups).sort().values, torch.arange(96))
    assert groups[0].tolist() == [*range(4), *range(30, 42)]
    split = sum(group_noise(few[g], power[g], columns[g]) for g in groups)
    assert split < group_noise(few, power, columns) / 4
    assert len(choose_groups(torch.ones(96), torch.ones(96), columns, 3, 4.0, 16)) == 1
    assert len(choose_groups(few[:8], power[:8], columns[:8], 3, 4.0, 16)) == 1  # fewer units than one group


def _massive() -> tuple[VisionTransformer, torch.Tensor]:
    config = uniform(image_size=32, patch_size=8, width=24, depth=3, heads=3, hidden=48, classes=10)
    model = init_weights(VisionTransformer(config), seed=1).eval()
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[7] *= 20
        model.blocks[1].mlp.fc2.weight[:, 7] *= 20
    return model, torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def test_massive_is_found_and_kept_to_its_budget() -> None:
    model, x = _massive()
    found = find_massive(model, batched(x))
    assert [(c.layer, c.unit) for c in found] == [("block1.mlp.fc2", 7)]
    before = model.blocks[1].mlp.fc2.weight[:, 7].norm()
    result = scale_massive(model, batched(x), 1.0)
    assert result["factor"] < 0.2
    assert model.blocks[1].mlp.fc2.weight[:, 7].norm() < 0.5 * before


def test_massive_off_and_without_budget() -> None:
    model, x = _massive()
    _, report = condition(model, batched(x), ConditionOptions(rotate="off", smooth=False))
    assert "massive" not in [s.name for s in report.steps]
    weight = model.blocks[1].mlp.fc2.weight.clone()
    result = scale_massive(model, batched(x), -1.0)
    assert result["factor"] == 1.0 and torch.equal(weight, model.blocks[1].mlp.fc2.weight)


def test_scaling_is_inexact_only_where_something_was_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _massive()
    # By import, not by the path "vitedge.condition...": `vitedge.condition` is the API's function.
    massive = importlib.import_module("vitedge.condition.massive")
    for outlier, scaled in ((5.0, True), (1e9, False)):
        monkeypatch.setattr(massive, "OUTLIER", outlier)
        options = ConditionOptions(rotate="off", smooth=False, massive=100.0)
        step = next(s for s in condition(model, batched(x), options)[1].steps if s.name == "massive")
        assert (step.chosen["factor"] < 1) == scaled and step.exact == (not scaled)


def test_non_finite_names_site_and_image() -> None:
    model, x = _massive()
    x[17] = float("nan")
    with pytest.raises(VitedgeError, match=r"'patches'.*image 17"):
        measure(model, batched(x, 5)())


def test_no_images() -> None:
    model, _ = _massive()
    with pytest.raises(VitedgeError, match="no calibration images"):
        condition(model, lambda: iter(()))


def test_options_that_contradict() -> None:
    with pytest.raises(VitedgeError, match="need fold"):
        ConditionOptions(fold=False)
    with pytest.raises(VitedgeError, match="rotate = 'sideways'"):
        ConditionOptions(rotate="sideways")  # type: ignore[arg-type]
