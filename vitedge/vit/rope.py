"""Rotary position embedding, baked into constants (see `block.Rope`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitedge.vit.config import ViTConfig


def rope_table(config: ViTConfig) -> Tensor | None:
    """Cosines and signed sines [2, tokens, dim] of every token; 1 and 0 for prefix tokens. None without RoPE."""
    rope, dims = config.rope, {b.qk_dim for b in config.blocks if b.rope}
    if rope is None or not dims:
        return None
    (dim,) = dims
    # A model is made without memory first ("meta"): this is no weight, and is computed here.
    exponent = torch.arange(dim // 4, dtype=torch.float32, device="cpu") / (dim // 4)
    frequencies = 1.0 / rope.temperature**exponent
    angles = []
    for axis, size in enumerate(config.grid):
        place = torch.arange(size, dtype=torch.float32, device="cpu")
        if rope.coordinates == "centred":
            place = 2 * math.pi * (2 * (place + 0.5) / size - 1)
        elif rope.reference is not None:
            place = place / size * rope.reference[axis]
        angles.append(place[:, None] * frequencies)
    rows, columns = angles[0][:, None].expand(-1, config.grid[1], -1), angles[1][None].expand(config.grid[0], -1, -1)
    angle = torch.cat([rows, columns], -1).flatten(0, 1)
    angle = torch.cat([torch.zeros(config.prefix, angle.shape[1], device="cpu"), angle])
    cosines, sines = angle.cos(), angle.sin()
    return torch.stack([torch.cat([cosines, cosines], 1), torch.cat([-sines, sines], 1)])


def turned(x: Tensor, table: Tensor) -> Tensor:
    """x [..., N, dim], its pairs (i, i + dim / 2) turned by the angles of the table's first N tokens."""
    cosines, sines = table[:, : x.shape[-2]].to(x.dtype)
    return x * cosines + x.roll(x.shape[-1] // 2, -1) * sines
