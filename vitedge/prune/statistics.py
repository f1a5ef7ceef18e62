"""The moments of a block's inner activations, for every closed form and every importance."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitedge.moments import Moments
from vitedge.vit.block import BlockConfig
from vitedge.vit.layers import Block


def token_weights(x: Tensor, sizes: Tensor | None = None) -> Tensor:
    """The weight of each token's error, [B, N] from the residual stream [B, N, C], times the token's size.

    The LayerNorm that follows divides a token by its standard deviation, so an error counts relative to it; the
    few massive tokens of a ViT (arXiv 2309.16588) would else outweigh all others together.
    """
    return (1 if sizes is None else sizes) / x.detach().float().var(-1).clamp_min(1e-12)


def attended_weights(block: Block, x: Tensor, sizes: Tensor | None = None) -> Tensor:
    """As `token_weights`, of the tokens as the block's attention takes them; 0 for what completes a window."""
    return block.as_attended(token_weights(x, sizes)[..., None])[..., 0]


@dataclass
class AttentionMoments:
    """Of one attention.

    Attributes:
        context: moments of what the output projection reads.
        queries: E[q q^T] of each head, keys: the keys' covariance within an image (or window), both [heads, dim, dim].
    """

    config: BlockConfig
    context: Moments = field(init=False)
    queries: Tensor = field(init=False)
    keys: Tensor = field(init=False)

    def __post_init__(self) -> None:
        c = self.config
        self.context = Moments(c.heads * c.v_dim)
        self.queries = torch.zeros(c.heads, c.qk_dim, c.qk_dim, dtype=torch.float64)
        self.keys = torch.zeros_like(self.queries)

    def add(self, seen: dict[str, Tensor], weights: Tensor) -> None:
        """Take one batch in: what was seen inside (`recording`), and the weights of its tokens, in the same order."""
        self.context.add(seen["context"], weights=weights)
        q = seen["q"].detach().float().unflatten(-1, (self.config.heads, -1))
        k = seen["k"].detach().float().unflatten(-1, (self.config.heads, -1))
        k = k - k.mean(1, keepdim=True)
        # Only their directions and relative sizes matter, so sums do as well as means.
        self.queries += torch.einsum("bnhd,bnhe->hde", q, q).double()
        self.keys += torch.einsum("bnhd,bnhe->hde", k, k).double()


@dataclass
class BlockMoments:
    """Of one block; None where it has no MLP or no attention. `distances`: see `tokens.constant.mean_distances`, of the
    stream between the halves."""

    hidden: Moments | None
    attention: AttentionMoments | None
    distances: tuple[Tensor, Tensor] | None = None

    def means(self) -> dict[str, Tensor]:
        """The mean "hidden" and "context", float32."""
        found = {}
        if self.hidden is not None:
            found["hidden"] = self.hidden.mean()[0].float()
        if self.attention is not None:
            found["context"] = self.attention.context.mean()[0].float()
        return found
