"""Bipartite soft matching with sizes (ToMe, Bolya et al., arXiv 2210.09461), as pure functions of the stream.

Two tokens are near where their residual streams are, each centred and scaled to one length as the next LayerNorm will
do it. Unlike keys, these do not change when heads are scaled or cut, and they turn with a rotation of the stream, so
that the exact transforms leave the matching as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Of the LayerNorm that scales the tokens.
EPS = 1e-6


def split_sizes(stream: Tensor, width: int) -> tuple[Tensor, Tensor | None]:
    """A stream [B, N, width] or [B, N, width + 1] as its tokens and their sizes [B, N], None before the first merge."""
    return (stream, None) if stream.shape[-1] == width else (stream[..., :width], stream[..., width])


def join_sizes(x: Tensor, sizes: Tensor | None) -> Tensor:
    """The inverse of `split_sizes`."""
    return x if sizes is None else torch.cat([x, sizes[..., None].to(x.dtype)], -1)


def directions(x: Tensor) -> Tensor:
    """The tokens [B, N, C] centred over their channels, with length 1."""
    width = x.shape[-1]
    return F.layer_norm(x, (width,), x.new_full((width,), width**-0.5), eps=EPS)


def ward(cosine: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """Minus the squared error that each merge would add, of sizes [B, A] and [B, D]: Ward's linkage (1963).

    cosine: of the directions [B, A, D]; the distance of two directions is 2 - 2 cosine.
    """
    return (cosine - 1) / (1 / ours[:, :, None] + 1 / theirs[:, None])


def match(x: Tensor, sizes: Tensor | None, left: int, prefix: int) -> Tensor:
    """The group, 0 to left - 1, of each token of each image [B, N].

    The tokens after the `prefix` are dealt out in turns; of the first set, those that lose least become one with the
    nearest of the second. Groups are numbered as the graph lays them out: prefix, the first set's rest by
    similarity, the second set. At most half of the tokens after the prefix can go.
    """
    tokens, d = x.shape[1], directions(x[:, prefix:].float())
    ours, theirs = d[:, ::2], d[:, 1::2]
    scores = ours @ theirs.transpose(1, 2)
    if sizes is not None:
        scores = ward(scores, sizes[:, prefix::2].float(), sizes[:, prefix + 1 :: 2].float())
    best, nearest = scores.max(-1)
    gone, first = tokens - left, ours.shape[1]
    rank = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    groups = torch.arange(tokens, device=x.device).repeat(len(x), 1)
    second = prefix + first - gone
    groups[:, prefix + 1 :: 2] = second + torch.arange(theirs.shape[1], device=x.device)
    groups[:, prefix::2] = torch.where(rank < gone, second + nearest, prefix + rank - gone)
    return groups


def merge(x: Tensor, sizes: Tensor | None, groups: Tensor, left: int) -> tuple[Tensor, Tensor]:
    """Each group's mean by size [B, left, C], and its size [B, left]. groups: of each token, [B, N] or [N]."""
    groups = groups.expand(len(x), -1)
    weights = x.new_ones(x.shape[:2]) if sizes is None else sizes
    total = weights.new_zeros(len(x), left).scatter_add(1, groups, weights)
    index = groups[..., None].expand(-1, -1, x.shape[-1])
    # Means are sums of shares: products stay in the range of the tokens, also in half precision.
    shares = x * (weights / total.gather(1, groups))[..., None]
    return x.new_zeros(len(x), left, x.shape[-1]).scatter_add(1, index, shares), total


def match_to(x: Tensor, left: int, prefix: int) -> Tensor:
    """Groups [B, N] of as many matchings, one on what the other left, as it takes to come down to `left` tokens."""
    history, sizes = None, None
    while history is None or x.shape[1] > left:
        half = prefix + (x.shape[1] - prefix) // 2
        groups = match(x, sizes, max(left, half), prefix)
        x, sizes = merge(x, sizes, groups, max(left, half))
        history = compose(history, groups)
    return history


def compose(before: Tensor | None, groups: Tensor) -> Tensor:
    """The history [B, tokens of the image] of a further merge: where each of the image's own tokens is now."""
    return groups if before is None else groups.gather(1, before)
