"""Another input resolution by interpolating the position embedding."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vitedge.vit.config import ViTConfig


def resize_positions(pos_embedding: Tensor, grid: int) -> Tensor:
    """[1, 1 + g*g, C] -> [1, 1 + grid*grid, C]; bicubic over the grid, [CLS]'s position kept
    (arXiv 2010.11929, section 3.2; bicubic with antialiasing as in timm)."""
    cls, patches = pos_embedding[:, :1], pos_embedding[:, 1:]
    old = round(patches.shape[1] ** 0.5)
    if old == grid:
        return pos_embedding
    planes = patches.transpose(1, 2).unflatten(2, (old, old))
    planes = F.interpolate(planes, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([cls, planes.flatten(2).transpose(1, 2)], dim=1)


def resize_model(config: ViTConfig, state: dict[str, Tensor], image_size: int) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Configuration and state dict for images of `image_size` pixels. Raises VitedgeError where the patches
    don't divide it."""
    resized = replace(config, image_size=image_size)
    return resized, state | {"pos_embedding": resize_positions(state["pos_embedding"], resized.grid)}
