"""Another input resolution by interpolating the position embedding."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vitedge.vit.config import ViTConfig


def resize_positions(
    pos_embedding: Tensor, old: tuple[int, int], grid: tuple[int, int], *, antialias: bool = True
) -> Tensor:
    """[1, P + rows * columns of `old`, C] -> [1, P + those of `grid`, C]; bicubic over the grid, the positions of the P
    prefix tokens as they are (arXiv 2010.11929, section 3.2; bicubic with antialiasing as in timm)."""
    prefix = pos_embedding.shape[1] - old[0] * old[1]
    first, patches = pos_embedding[:, :prefix], pos_embedding[:, prefix:]
    if old == grid:
        return pos_embedding
    planes = patches.transpose(1, 2).unflatten(2, old)
    planes = F.interpolate(planes, size=grid, mode="bicubic", antialias=antialias, align_corners=False)
    return torch.cat([first, planes.flatten(2).transpose(1, 2)], dim=1)


def resize_model(
    config: ViTConfig, state: dict[str, Tensor], image_size: tuple[int, int], *, antialias: bool = True
) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Configuration and state dict for images of (height, width) pixels. Raises VitedgeError where the patches don't
    divide it."""
    resized = replace(config, image_size=image_size)
    if not config.positions:
        return resized, state
    return resized, state | {
        "pos_embedding": resize_positions(state["pos_embedding"], config.grid, resized.grid, antialias=antialias)
    }
