"""Shares of predicted time."""

from __future__ import annotations

import pytest
import torch

from vitedge.cost import store
from vitedge.cost.model import LatencyModel
from vitedge.errors import VitedgeError
from vitedge.prune import PruneOptions, prune
from vitedge.vit.macs import model_macs


@pytest.fixture
def attention_is_slow(tmp_path, monkeypatch, tiny_config) -> LatencyModel:
    """A machine that takes long for attention and LayerNorm, as NPUs do."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    costs = {"linear": 0.01, "attention": 1.0, "norm": 5.0, "patches": 0.01}
    model = LatencyModel(target="onnxruntime", precision="fp32", coefficients=costs, source="a test")
    store.keep(model, tiny_config.width)
    return model


def pruned(model, **options):
    images = torch.randn(48, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    own = PruneOptions(recover="ridge", align=8, min_hidden=8, head_align=4, **options)
    return prune(model, lambda: iter(images.split(16)), own)


def test_a_share_of_the_time_goes(tiny_model, attention_is_slow) -> None:
    small, report = pruned(tiny_model, prune=0.3, prune_unit="time", prune_target="onnxruntime")
    before, after = (attention_is_slow.predict(m.config).ms for m in (tiny_model, small))
    assert after <= 0.7 * before
    assert report.removed == pytest.approx(1 - after / before, abs=1e-4) and report.unit == "time"
    by_macs, _ = pruned(tiny_model, prune=1 - model_macs(small.config) / model_macs(tiny_model.config))
    assert attention_is_slow.predict(by_macs.config).ms > after, "MACs alone don't know what takes the time"


def test_time_needs_a_target_that_was_profiled(tiny_model, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(VitedgeError, match="--prune-target"):
        pruned(tiny_model, prune=0.3, prune_unit="time")
    with pytest.raises(VitedgeError, match="vitedge profile MODEL --target onnxruntime --precision fp32"):
        pruned(tiny_model, prune=0.3, prune_unit="time", prune_target="onnxruntime")
