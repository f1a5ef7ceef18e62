"""Tokens cut into windows and put together again, and what attention within windows adds to its scores (Swin, arXiv
2103.14030)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitedge.vit.geometry import Window

# Added to the score of two tokens that the shift brought into one window, but that are no neighbours; of all libraries.
APART = -100.0


def to_blocks(x: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """[B, rows * columns, C] -> [B * number, area, C]: the grid in blocks of `size`, row by row."""
    (_, columns), (high, wide) = grid, size
    # The first of the two axes within a block stays outside: 4 dimensions are enough.
    x = x.reshape(-1, high, columns // wide, wide * x.shape[-1]).transpose(1, 2)
    return x.reshape(-1, high * wide, x.shape[-1] // wide)


def from_blocks(x: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The inverse of `to_blocks`."""
    (rows, columns), (high, wide) = grid, size
    x = x.reshape(-1, columns // wide, high, wide * x.shape[-1]).transpose(1, 2)
    return x.reshape(-1, rows * columns, x.shape[-1] // wide)


def to_windows(x: Tensor, grid: tuple[int, int], window: Window) -> Tensor:
    """[B, rows * columns, C] -> [B * windows, area, C], moved and completed with zeros."""
    padded, moved = window.padded(grid), window.moved(grid)
    if padded != grid or any(moved):
        x = x.unflatten(1, grid)
        pad = (0, 0, 0, padded[1] - grid[1], 0, padded[0] - grid[0])
        x = F.pad(x, pad) if window.pad_first else x
        x = x.roll((-moved[0], -moved[1]), (1, 2))
        x = (x if window.pad_first else F.pad(x, pad)).flatten(1, 2)
    return to_blocks(x, padded, window.size)


def from_windows(x: Tensor, grid: tuple[int, int], window: Window) -> Tensor:
    """The inverse of `to_windows`."""
    padded, moved = window.padded(grid), window.moved(grid)
    x = from_blocks(x, padded, window.size)
    if padded == grid and not any(moved):
        return x
    x = x.unflatten(1, padded)
    if not window.pad_first:
        x = x[:, : grid[0], : grid[1]]
    x = x.roll(moved, (1, 2))
    return x[:, : grid[0], : grid[1]].flatten(1, 2)


def relative_places(size: tuple[int, int]) -> Tensor:
    """Row of the bias table for each query and key of a window [area, area]: (2 * high - 1) * (2 * wide - 1) rows, by
    the query's place minus the key's."""
    high, wide = size
    rows, columns = (torch.arange(side, device="cpu") for side in size)
    down = (rows[:, None] - rows + high - 1)[:, None, :, None]
    right = (columns[:, None] - columns + wide - 1)[None, :, None, :]
    return (down * (2 * wide - 1) + right).reshape(high * wide, high * wide)


def shift_mask(grid: tuple[int, int], window: Window) -> Tensor | None:
    """Added to the scores of moved windows [windows, area, area]: `APART` for two tokens that are no neighbours in the
    image. None where no window is moved."""
    moved = window.moved(grid)
    if not any(moved):
        return None
    regions = []
    for side, size, shift in zip(window.padded(grid), window.size, moved, strict=True):
        place = torch.arange(side, device="cpu")
        regions.append((place >= side - size).long() + (place >= side - shift).long() * (shift > 0))
    region = (3 * regions[0][:, None] + regions[1]).reshape(1, -1, 1)
    region = to_blocks(region, window.padded(grid), window.size)
    return (region != region.transpose(1, 2)).float() * APART


class WindowBias(nn.Module):
    """What is added to the scores of each window: a bias for each relative position, and the mask of moved windows.

    table: the biases [(2 * high - 1) * (2 * wide - 1), heads].
    """

    places: Tensor
    mask: Tensor | None

    def __init__(self, heads: int, window: Window, grid: tuple[int, int]) -> None:
        super().__init__()
        places = relative_places(window.size)
        self.table = nn.Parameter(torch.zeros(int(places.max()) + 1, heads))
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("mask", shift_mask(grid, window), persistent=False)

    def forward(self, number: int) -> Tensor:
        """[number or 1, heads, area, area], for `number` windows, those of one image after those of another."""
        bias = self.table[self.places.flatten()].T.reshape(1, -1, *self.places.shape)
        if self.mask is None:
            return bias
        return (bias + self.mask[:, None]).repeat(number // len(self.mask), 1, 1, 1)
