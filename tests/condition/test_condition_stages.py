"""Exact transforms of a model of several stages: each stage's stream, with outliers put in."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from tests.vit.test_vit_variants import apart, of
from tests.vit.variants import VARIANTS, images, make
from vitedge.condition import ConditionOptions, condition
from vitedge.condition.apply import batched
from vitedge.condition.fold import fold_norms
from vitedge.condition.orthogonal import random_rotation, spreading_rotation
from vitedge.condition.rotate import centre_stream, rotate_stream, stream_moment
from vitedge.errors import VitedgeError
from vitedge.train.stream import Rotated, stream_rotations
from vitedge.vit.model import VisionTransformer

STAGES = VARIANTS["windows and stages"]


def uneven() -> VisionTransformer:
    """Biases of windows and of patch merging that matter, and a token mean that differs from token to token."""
    model = make(STAGES)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias.table"):
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
            if name.endswith(("fc2.weight", "out.weight", "downsample.linear.weight")):
                parameter += 0.1 * parameter.std()
    return model


@pytest.mark.parametrize("kind", ["random", "learned"])
@pytest.mark.parametrize("stage", [0, 1])
def test_each_stream_is_rotated_alone(stage: int, kind: str) -> None:
    model, x = uneven().rotatable(), images(STAGES)
    changed = copy.deepcopy(model)
    fold_norms(changed)
    centre_stream(changed)
    still = copy.deepcopy(changed)
    width = changed.streams()[stage].width
    assert width == (32, 48)[stage]
    moment = spreading_rotation(stream_moment(changed, [x], stage), 0)
    rotate_stream(changed, random_rotation(width, 0) if kind == "random" else moment, stage)
    assert apart(of(model, x), of(changed, x)) < 1e-5
    with torch.no_grad():
        ours, theirs = changed.embed(x), still.embed(x)
        for i in range(len(STAGES.blocks)):
            ours, theirs = changed.run_block(i, ours), still.run_block(i, theirs)
            turned = float((ours - theirs).abs().max()) > 0.1 * float(theirs.abs().max())
            assert turned == (STAGES.block_stage(i) == stage)


def test_tokens_that_are_read_side_by_side_keep_their_means() -> None:
    model, x = uneven(), images(STAGES)
    fold_norms(model)
    centre_stream(model)
    first, last = (model.streams()[stage].sites[-1] for stage in (0, 1))
    means = {}
    for name in (first, last):
        model.sites()[name].register_forward_hook(
            lambda _, __, out, name=name: means.update({name: float(out.mean(-1).abs().max() / out.std())})
        )
    of(model, x)
    assert means[first] > 0.01 and means[last] < 1e-5


def test_the_rotation_of_each_stage_is_found_again() -> None:
    teacher, x = uneven(), images(STAGES, 12)
    model, report = condition(teacher, batched(x), ConditionOptions(rotate="random"))
    assert all(step.exact for step in report.steps)
    rotations = stream_rotations(model, teacher)
    assert rotations is not None and [len(r) for r in rotations] == [32, 48]
    with torch.no_grad():
        ours, theirs = model.embed(x), teacher.embed(x)
        for i in range(len(STAGES.blocks)):
            ours, theirs = model.run_block(i, ours), teacher.run_block(i, theirs)
            assert float(Rotated(rotations[STAGES.block_stage(i)])(ours, theirs)) < 1e-5
            assert float((ours - theirs).abs().max()) > 0.1


def test_windows_completed_with_zeros_are_refused() -> None:
    model = make(replace(STAGES, image_size=(40, 48)))
    with pytest.raises(VitedgeError, match="10 x 12 tokens do not divide into windows of 4 x 3"):
        condition(model, batched(images(model.config)))
