"""Weights to start a small ViT from: its heads look at neighbouring patches, as a convolution does.

A ViT learns slowly to see neighbourhoods. Here they are put into the first weights, as ConViT does with its gates
(arXiv 2103.10697) and structured initialisation with a plain ViT's queries and keys (arXiv 2404.01139); training
is free to change all of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitedge.vit.config import ViTConfig
from vitedge.vit.model import VisionTransformer, init_weights

# Share of the residual stream's variance that the position has at first.
POSITION_SHARE = 0.5
# Difference of the attention logits between two patches where the positional codes differ by one unit.
GAIN = 2.0
# Weight of a patch's mean brightness and colour beside its structure.
MEAN_WEIGHT = 0.3


def position_codes(grid: int, dim: int) -> tuple[Tensor, Tensor]:
    """Sines and cosines of the place of each patch [grid * grid, dim], and their frequencies [dim / 4].

    The first half of the columns codes the row, the second the column, in pairs (sin, cos).
    """
    frequencies = math.pi / grid * torch.arange(1, dim // 4 + 1)
    phase = torch.arange(grid)[:, None] * frequencies
    line = torch.stack([phase.sin(), phase.cos()], dim=2).flatten(1)
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=2).reshape(grid * grid, dim), frequencies


def shift(frequencies: Tensor, down: float, right: float) -> Tensor:
    """The matrix [dim, dim] that turns the code of a place into that of the place `down` and `right` of it."""
    half = 2 * len(frequencies)
    matrix = torch.zeros(2 * half, 2 * half)
    for axis, distance in enumerate((down, right)):
        for j, frequency in enumerate(frequencies.tolist()):
            at, c, s = axis * half + 2 * j, math.cos(frequency * distance), math.sin(frequency * distance)
            matrix[at : at + 2, at : at + 2] = torch.tensor([[c, s], [-s, c]])
    return matrix


def cosine_patches(patch: int, count: int) -> Tensor:
    """The `count` lowest two-dimensional cosines of a patch in brightness and two colour differences.

    [count, 3, patch, patch], orthogonal, of norm 1, the means smaller (`MEAN_WEIGHT`); zeros where there are
    fewer than `count`.
    """
    place = torch.arange(patch) + 0.5
    waves = torch.stack([torch.cos(math.pi / patch * place * k) for k in range(patch)])
    waves /= waves.norm(dim=1, keepdim=True)
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
    colours /= colours.norm(dim=1, keepdim=True)
    # A colour's wave comes half a step after the brightness's of the same frequency.
    order = sorted(
        (i * i + j * j + 0.5 * (c > 0), i, j, c) for i in range(patch) for j in range(patch) for c in range(3)
    )
    kernels = torch.zeros(count, 3, patch, patch)
    for kernel, (_, i, j, c) in zip(kernels, order, strict=False):
        weight = MEAN_WEIGHT if i == j == 0 else 1.0
        kernel.copy_(weight * colours[c][:, None, None] * waves[i][:, None] * waves[j])
    return kernels


@torch.no_grad()
def init_local(config: ViTConfig, seed: int = 0) -> VisionTransformer:
    """A ViT in which head h of each block looks in its own direction, one patch far in the first two blocks, two in the
    next two, and so on. Needs heads whose size is a multiple of 4."""
    model = init_weights(VisionTransformer(config), seed)
    generator = torch.Generator().manual_seed(seed)
    dim, width = config.blocks[0].qk_dim, config.width
    codes, frequencies = position_codes(config.grid[0], dim)
    basis = torch.linalg.qr(torch.randn(width, dim, generator=generator))[0].T
    amplitude = math.sqrt(POSITION_SHARE * width / (dim / 2))
    assert model.pos_embedding is not None
    model.pos_embedding.zero_()
    model.pos_embedding[0, config.prefix :] = codes @ basis * amplitude
    mixing = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    patches = mixing @ cosine_patches(config.patch_size, width).flatten(1)
    # What the image writes stays out of the position's subspace, and so does what the blocks write.
    patches -= basis.T @ (basis @ patches)
    model.patch_embed.weight.copy_((patches * math.sqrt(1 - POSITION_SHARE)).view_as(model.patch_embed.weight))
    for index, block in enumerate(model.encoder()):
        attention, mlp, heads = block.attention, block.mlp, config.blocks[index].heads
        assert attention is not None and mlp is not None
        gain = math.sqrt(GAIN / amplitude**2 / config.blocks[index].scale)
        for head in range(heads):
            angle = 2 * math.pi * (head + 0.5 * (index % 2)) / heads
            radius = 1 + index // 2
            turned = shift(frequencies, radius * math.sin(angle), radius * math.cos(angle))
            rows = slice(head * dim, (head + 1) * dim)
            attention.q.weight[rows] = turned @ basis * gain
            attention.k.weight[rows] = basis * gain
        for layer in (attention.out, mlp.fc2):
            layer.weight -= basis.T @ (basis @ layer.weight)
    return model
