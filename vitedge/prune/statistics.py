"""The moments of a block's inner activations, for every closed form and every importance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitedge.prune.moments import Moments
from vitedge.prune.watch import watching
from vitedge.vit.model import Block


@dataclass
class BlockMoments:
    """Of one block, on the pictures it was shown.

    Attributes:
        hidden: of what fc2 reads. context: of what the output projection reads. None without MLP / attention.
        queries: E[q q^T] of each head, keys: the keys' covariance within an image, both [heads, dim, dim].
    """

    hidden: Moments | None
    context: Moments | None
    queries: Tensor | None
    keys: Tensor | None


def token_weights(x: Tensor) -> Tensor:
    """The weight of each token's error, [B, N] from the residual stream [B, N, C].

    The LayerNorm that follows divides a token by its standard deviation, so an error counts relative to it; the
    few massive tokens of a ViT (arXiv 2309.16588) would else outweigh all others together.
    """
    return 1 / x.detach().float().var(-1).clamp_min(1e-12)


def empty(block: Block) -> BlockMoments:
    """Nothing seen yet."""
    c = block.config
    square = (c.heads, c.qk_dim, c.qk_dim)
    return BlockMoments(
        Moments(c.hidden) if block.mlp is not None else None,
        Moments(c.heads * c.v_dim) if block.attention is not None else None,
        torch.zeros(square, dtype=torch.float64) if block.attention is not None else None,
        torch.zeros(square, dtype=torch.float64) if block.attention is not None else None,
    )


def observe(block: Block, stats: BlockMoments, seen: dict[str, Tensor], out: Tensor) -> None:
    """Take one batch in: what was seen inside the block, and what it wrote [B, N, C]."""
    weights = token_weights(out)
    if stats.hidden is not None:
        stats.hidden.add(seen["hidden"], weights=weights)
    if stats.context is not None:
        heads = block.config.heads
        stats.context.add(seen["context"], weights=weights)
        q = seen["q"].detach().float().unflatten(-1, (heads, -1))
        k = seen["k"].detach().float().unflatten(-1, (heads, -1))
        k = k - k.mean(1, keepdim=True)
        stats.queries += torch.einsum("bnhd,bnhe->hde", q, q).double() / q[..., 0, 0].numel()
        stats.keys += torch.einsum("bnhd,bnhe->hde", k, k).double() / k[..., 0, 0].numel()


def gather(block: Block, batches: Iterable[Tensor], queries: int | None) -> BlockMoments:
    """The moments of one block fed with residual streams [B, N, C]."""
    stats = empty(block)
    with torch.no_grad(), watching(block) as seen:
        for x in batches:
            out = block(x, queries)
            observe(block, stats, seen, out)
    return stats
