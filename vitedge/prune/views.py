"""More images out of the calibration images: labels aren't needed, so any natural-looking view will do."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(images: Tensor, generator: torch.Generator, smallest: float = 0.35) -> Tensor:
    """Random crops, resized back, half of them mirrored: [B, C, H, W] -> [B, C, H, W], in normalised values.

    Each crop has the image's aspect ratio and `smallest` to 1 of its area.
    """
    sides = images.shape[-2:]
    views = []
    for image in images:
        area, left, top, flip = torch.rand(4, generator=generator).tolist()
        height, width = (max(1, round(side * (smallest + (1 - smallest) * area) ** 0.5)) for side in sides)
        y, x = round(top * (sides[0] - height)), round(left * (sides[1] - width))
        crop = image[None, :, y : y + height, x : x + width]
        if (height, width) != sides:
            crop = F.interpolate(crop, size=sides, mode="bicubic", antialias=True, align_corners=False)
        views.append(crop.flip(-1) if flip < 0.5 else crop)
    return torch.cat(views)
