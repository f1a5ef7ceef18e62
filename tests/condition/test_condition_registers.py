"""Massive activations become registers: the function stays, the norms go."""

from __future__ import annotations

import copy
import json

import numpy as np
import onnxruntime as ort
import pytest
import torch

from tests.condition.sinks import SOURCE, UNIT, sink_images, sink_model
from vitedge.condition import ConditionOptions, condition
from vitedge.condition.apply import batched
from vitedge.condition.fold import fold_norms
from vitedge.condition.ranges import measure
from vitedge.condition.registers import add_registers
from vitedge.data.preprocess import Preprocess
from vitedge.export.vit import export_vit


@pytest.fixture(scope="module")
def made():
    """(the model, its form with registers, what was done)."""
    model = sink_model()
    fold_norms(model)
    return model, *add_registers(model, batched(sink_images(48)), 32)


def test_sinks_become_registers(made) -> None:
    model, ours, report = made
    assert report.reason == "" and report.agreement >= 0.98 and report.images == 16
    assert [(layer, unit) for layer, unit, _ in report.columns] == [(f"block{SOURCE}.mlp.fc2", UNIT)]
    assert 2 < report.sinks < 3 and min(report.alike.values()) > 0.9
    assert [b.marker for b in ours.config.blocks] == [False, True, False, False, False]
    assert [b.register for b in ours.config.blocks] == [False, False, True, True, True]
    x = sink_images(32, seed=5)
    with torch.no_grad():
        noise = (ours(x) - model(x)).square().mean() / model(x).var()
    assert noise < 1e-3


def test_norms_are_gone(made) -> None:
    model, ours, _ = made
    x = [sink_images(16, seed=6)]
    site = f"block{SOURCE}.residual2"
    before, after = (measure(m, x, [site])[site] for m in (model, ours))
    assert before.absmax.max() > 10 * after.absmax.max()
    # Without the register the sinks' own content would be read: the function depends on it.
    with torch.no_grad():
        right = ours(x[0])
        for block in ours.blocks:
            if block.norm1_register is not None:
                block.norm1_register.gate.bias.add_(100)
        wrong = ours(x[0])
        for block in ours.blocks:
            if block.norm1_register is not None:
                block.norm1_register.gate.bias.sub_(100)
    assert (right - wrong).square().mean() / right.var() > 1e-2


def test_what_comes_after_is_exact_and_so_is_the_graph() -> None:
    model, x = sink_model(), sink_images(48)
    ours, report = condition(model, batched(x), ConditionOptions(images=32, group_gain=1.2, registers=True))
    assert [s.name for s in report.steps if not s.exact] == ["registers"]
    assert json.loads(json.dumps(report.to_dict()))["steps"][1]["chosen"]["reason"] == ""
    # Once more: what was conditioned is folded, rotated and smoothed again, registers and all.
    again, second = condition(ours, batched(x), ConditionOptions(images=32, registers=True))
    assert all(step.exact for step in second.steps)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    pre = Preprocess(resize=48, crop=48, mean=(0.5,) * 3, std=(0.25,) * 3)
    for m in (ours, again):
        graph = export_vit(m.config, {k: v.numpy() for k, v in m.state_dict().items()}, pre, None)
        logits = ort.InferenceSession(graph.SerializeToString()).run(None, {"pixels": pixels})[0]
        with torch.no_grad():
            expected = m(torch.from_numpy(pre.normalize(pixels))).numpy()
        assert np.abs(logits - expected).max() < 1e-4 * np.ptp(expected)


def test_nothing_is_done_where_it_would_not_hold(made) -> None:
    model, _, _ = made
    alone = sink_model()
    fold_norms(alone)
    with torch.no_grad():
        alone.blocks[SOURCE].mlp.fc2.weight[:, UNIT].div_(60)
    same, report = add_registers(alone, batched(sink_images(16)), 16)
    assert same is alone and report.reason == "no massive activations"
    # [CLS] is read by the head: a constant in its place is no classification.
    with torch.no_grad():
        model = copy.deepcopy(model)
        model.class_token.copy_(model.patch_embed(torch.full((1, 3, 8, 8), 3.0)).reshape(1, 1, -1))
        same, report = add_registers(model, batched(sink_images(16)), 16)
    assert same is model and "head reads" in report.reason
