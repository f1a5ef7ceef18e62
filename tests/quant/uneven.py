"""A small ViT with groups of MLP units and uneven widths, as conditioning leaves it, and images for it."""

from __future__ import annotations

import numpy as np
import torch

from vitedge.condition import ConditionOptions, condition
from vitedge.condition.apply import batched
from vitedge.data.preprocess import Preprocess
from vitedge.vit.block import BlockConfig
from vitedge.vit.config import ViTConfig
from vitedge.vit.model import VisionTransformer, init_weights

PREP = Preprocess(resize=32, crop=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
BLOCKS = (
    BlockConfig(heads=3, qk_dim=8, v_dim=8, hidden=96, scale=0.35),
    BlockConfig(heads=2, qk_dim=6, v_dim=10, hidden=0, scale=0.4),
    BlockConfig(heads=0, qk_dim=0, v_dim=0, hidden=32, scale=1.0),
    BlockConfig(heads=3, qk_dim=8, v_dim=8, hidden=64, scale=0.35),
)


def unconditioned() -> VisionTransformer:
    """Random weights, with an MLP unit far larger than the others."""
    config = ViTConfig(image_size=32, patch_size=8, channels=3, width=24, classes=10, blocks=BLOCKS)
    model = init_weights(VisionTransformer(config), seed=1).eval()
    with torch.no_grad():
        model.class_token.normal_(generator=torch.Generator().manual_seed(0))
        model.blocks[0].mlp.fc1.weight[5] *= 40
        model.blocks[0].mlp.fc2.weight[:, 5] *= 0.2
    return model


def conditioned() -> tuple[VisionTransformer, torch.Tensor, np.ndarray]:
    """(the model, normalised images [24, 3, 32, 32], their pixels uint8)."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    x = torch.from_numpy(PREP.normalize(pixels))
    model, _ = condition(unconditioned(), batched(x), ConditionOptions(group_gain=1.5))
    assert model.config.blocks[0].groups
    return model, x, pixels
