"""More images out of the calibration images: labels aren't needed, so any natural-looking view will do."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(images: Tensor, generator: torch.Generator, smallest: float = 0.35) -> Tensor:
    """Random crops, resized back, half of them mirrored: [B, C, H, W] -> [B, C, H, W], in normalised values.

    Each crop is a square of `smallest` to 1 of the area.
    """
    side = images.shape[-1]
    views = []
    for image in images:
        area, left, top, flip = torch.rand(4, generator=generator).tolist()
        size = max(1, round(side * (smallest + (1 - smallest) * area) ** 0.5))
        x, y = round(left * (side - size)), round(top * (side - size))
        crop = image[None, :, y : y + size, x : x + size]
        if size != side:
            crop = F.interpolate(crop, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
        views.append(crop.flip(-1) if flip < 0.5 else crop)
    return torch.cat(views)
