"""On the really trained ViT-Ti/16 and photographs."""

from __future__ import annotations

import pytest
import torch

from vitedge.data.folder import open_dataset
from vitedge.data.sample import load_pixels
from vitedge.prune import PruneOptions, prune
from vitedge.steps.source import float_batches
from vitedge.vit.checkpoint import load_model
from vitedge.vit.macs import model_macs


@pytest.mark.real
def test_closed_form_keeps_most_classes(shared_data, tmp_path) -> None:
    loaded = load_model(str(shared_data / "vit_ti_16"))
    pixels, _ = load_pixels(open_dataset(shared_data / "calib"), loaded.preprocess, 64, 0, tmp_path / "pixels.npy")
    calib = float_batches(pixels[:32], loaded.preprocess)
    held = torch.cat(list(float_batches(pixels[32:], loaded.preprocess)()))
    with torch.no_grad():
        wanted = loaded.model(held).argmax(1)
        small, _ = prune(loaded.model, calib, PruneOptions(prune=0.15, recover="ridge"))
        agreement = float((small(held).argmax(1) == wanted).float().mean())
    assert 0.15 <= 1 - model_macs(small.config) / model_macs(loaded.model.config) <= 0.16
    assert agreement >= 0.6  # 0.78 on 32 images; dropping 25 % of the units by L1 leaves under 0.2
