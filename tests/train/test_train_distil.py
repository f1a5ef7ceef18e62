"""Distillation: a spoiled student comes back towards its teacher, and never leaves worse than it came."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.train.kill import Lines, kill_in_loop, save_every_step, timeless
from vitedge.bundle import Bundle
from vitedge.cli import app
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.train.distil import distill
from vitedge.train.features import block_outputs
from vitedge.train.feed import Order
from vitedge.train.options import DistilOptions
from vitedge.train.teaching import Teaching, make_samples
from vitedge.vit.config import uniform
from vitedge.vit.model import VisionTransformer, init_weights

PREPROCESS = Preprocess(18, 16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def teacher() -> VisionTransformer:
    config = uniform(image_size=16, patch_size=8, width=32, depth=2, heads=2, hidden=64, classes=6)
    return init_weights(VisionTransformer(config), 3).eval()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (96, 2, 2, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def _spoiled(teacher: VisionTransformer, by: float) -> VisionTransformer:
    student = copy.deepcopy(teacher)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in student.blocks:
            block.mlp.fc2.weight += by * torch.randn(block.mlp.fc2.weight.shape, generator=generator)
            block.attention.out.weight += by * torch.randn(block.attention.out.weight.shape, generator=generator)
    return student


@pytest.mark.parametrize("taught", [{}, {"logit_weight": 1.0}, {"logit_weight": 1.0, "feature_weight": 0.0}])
def test_the_student_comes_back(teacher: VisionTransformer, pixels: np.ndarray, taught: dict[str, float]) -> None:
    student = _spoiled(teacher, 0.3)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    options = DistilOptions(epochs=20, lr=3e-3, precision="fp32", holdout=24, **taught)
    better, report = distill(student, teacher, pixels, PREPROCESS, options)
    assert report.kl[1] < 0.5 * report.kl[0]
    assert report.agreement[1] >= report.agreement[0]
    assert report.holdout == 24
    assert report.images == 72
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    x = torch.from_numpy(PREPROCESS.normalize(pixels))
    with torch.no_grad():
        error = [(m(x) - teacher(x)).square().mean().item() for m in (student, better)]
    assert error[1] < 0.5 * error[0]
    assert not better.training
    # Blocks' outputs say nothing about what comes after the blocks.
    assert torch.equal(better.head.weight, student.head.weight) == (not options.logit_weight)


def test_images_are_mixed(pixels: np.ndarray) -> None:
    black_or_white = np.zeros_like(pixels)
    black_or_white[::2] = 255
    made = make_samples(black_or_white, DistilOptions(mixup=1.0, cutmix=0.0, crop_scale=1.0), PREPROCESS)
    plain = make_samples(black_or_white, DistilOptions(mixup=0.0, cutmix=0.0, crop_scale=1.0), PREPROCESS)
    keys = next(iter(Order(len(pixels), 16, seed=0)))
    mixed, whole = made.__getitems__(keys)[0], plain.__getitems__(keys)[0]
    assert ((mixed > 60) & (mixed < 195)).any()
    assert not ((whole > 60) & (whole < 195)).any()


def test_it_is_never_worse_than_its_start(teacher: VisionTransformer, pixels: np.ndarray) -> None:
    options = DistilOptions(epochs=3, lr=10.0, precision="fp32")
    same, report = distill(teacher, teacher, pixels, PREPROCESS, options)
    assert report.agreement == (1.0, 1.0)
    assert report.best_step == 0
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])


def test_minutes_bound_it(teacher: VisionTransformer, pixels: np.ndarray) -> None:
    started = time.monotonic()
    _, report = distill(
        _spoiled(teacher, 0.1), teacher, pixels, PREPROCESS, DistilOptions(epochs=1e6, minutes=0.03)
    )
    assert report.views < 1e6 * report.images
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("step", [0, 1, 7])
def test_a_killed_run_resumes_to_the_same_weights(
    teacher: VisionTransformer, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    student, options = _spoiled(teacher, 0.3), DistilOptions(epochs=2, lr=3e-3, precision="fp32", holdout=24)
    save_every_step(monkeypatch)
    whole, straight = distill(student, teacher, pixels, PREPROCESS, options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_in_loop(patch, step)
        distill(student, teacher, pixels, PREPROCESS, options, state_folder=tmp_path / "state")
    said = Lines()
    with monkeypatch.context() as patch:
        # What was done is not done again: of the ten steps, no more than the rest may be left.
        kill_in_loop(patch, 10 - step)
        again, report = distill(student, teacher, pixels, PREPROCESS, options, said, tmp_path / "state")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    assert timeless(report) == timeless(straight)
    assert said.of("going on") == ([f"going on from step {step}"] if step else [])


def test_it_resumes_never_worse_than_its_start(
    teacher: VisionTransformer, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = DistilOptions(epochs=2, lr=10.0, precision="fp32")
    save_every_step(monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_in_loop(patch, 6)
        distill(teacher, teacher, pixels, PREPROCESS, options, state_folder=tmp_path)
    same, report = distill(teacher, teacher, pixels, PREPROCESS, options, state_folder=tmp_path)
    assert report.best_step == 0 and len(report.history) > 2
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in teacher.state_dict().items())


def test_minutes_bound_the_sum_of_the_sittings(
    teacher: VisionTransformer, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_every_step(monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_in_loop(patch, 2)
        distill(teacher, teacher, pixels, PREPROCESS, DistilOptions(epochs=1e6), state_folder=tmp_path)
    saved = torch.load(tmp_path / "loop.pt", weights_only=True)
    saved["state"]["seconds"] = 3600.0
    torch.save(saved, tmp_path / "loop.pt")
    _, report = distill(
        teacher, teacher, pixels, PREPROCESS, DistilOptions(epochs=1e6, minutes=30), state_folder=tmp_path
    )
    assert report.steps == 2 and report.seconds > 3600


def test_outputs_of_every_block(teacher: VisionTransformer) -> None:
    with torch.no_grad(), block_outputs(teacher) as found:
        logits = teacher(torch.randn(3, 3, 16, 16))
        assert [tuple(f.shape) for f in found] == [(3, 5, 32), (3, 1, 32)]
        torch.testing.assert_close(teacher.classify(found[-1]), logits)
        teacher(torch.randn(2, 3, 16, 16))
        assert len(found) == 2


def test_refusals(teacher: VisionTransformer, pixels: np.ndarray) -> None:
    with pytest.raises(VitedgeError, match="nothing to learn"):
        DistilOptions(logit_weight=0, feature_weight=0)
    with pytest.raises(VitedgeError, match="too few"):
        distill(teacher, teacher, pixels[:8], PREPROCESS, DistilOptions())
    other = VisionTransformer(
        uniform(image_size=16, patch_size=8, width=16, depth=2, heads=2, hidden=64, classes=6)
    )
    with pytest.raises(VitedgeError, match="no pruned form"):
        distill(other, teacher, pixels, PREPROCESS, DistilOptions())


def test_failures_name_what_the_configuration_has(
    teacher: VisionTransformer, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = _spoiled(teacher, 0.1)
    with pytest.raises(VitedgeError, match="no longer a number") as caught:
        distill(student, teacher, pixels, PREPROCESS, DistilOptions(lr=1e30, epochs=2, precision="fp32"))
    assert caught.value.todo == "Lower distill.lr in the configuration (--config FILE)."
    loss = Teaching.loss

    def limited(task: Teaching, model: torch.nn.Module, shown: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if len(shown) > 4:
            torch.empty(1 << 60, dtype=torch.uint8)  # the allocator's own refusal
        return loss(task, model, shown, targets)

    monkeypatch.setattr(Teaching, "loss", limited)
    with pytest.raises(VitedgeError, match="Out of memory at batch 16") as caught:
        distill(student, teacher, pixels, PREPROCESS, DistilOptions())
    assert "distill.batch = 4 and distill.accumulate = 4" in caught.value.todo and caught.value.exit_code == 1


def test_pruning_leaves_alone_what_judges(tmp_path: Path, tiny_folder: Path, shapes_folder: Path) -> None:
    call = ["compress", "--model", tiny_folder, "--calib", shapes_folder, "--run", tmp_path / "run", "--align", 8]
    call += ["--prune", 0.2, "--fit-steps", 2, "--recover", "distill", "--epochs", 1]
    CliRunner().invoke(app, [str(word) for word in call], catch_exceptions=False)
    bundle = Bundle.open(tmp_path / "run")
    # Of those that distillation leaves, pruning holds some out itself, to judge its plans by.
    assert bundle.facts("prune")["images"] + bundle.facts("prune")["held_out"] == 30
    assert (bundle.facts("distill")["holdout"], bundle.facts("distill")["images"]) == (10, 30)
