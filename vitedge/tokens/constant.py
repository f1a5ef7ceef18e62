"""The same groups for all images, for compilers that cannot sort: chosen by what merging costs on average."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from vitedge.tokens.matching import directions, split_sizes


def mean_distances(streams: Iterable[Tensor], width: int, prefix: int) -> tuple[Tensor, Tensor]:
    """The mean over images of the squared distance of any two tokens' directions [n, n], and their sizes [n].

    streams: batches [B, N, width] or [B, N, width + 1] whose sizes are the same for all images; n is N - prefix.
    """
    total, images, counts = torch.zeros(1, 1), 0, torch.ones(1)
    for stream in streams:
        x, sizes = split_sizes(stream, width)
        d = directions(x[:, prefix:].float())
        total = total + (2 - 2 * d @ d.transpose(1, 2)).clamp_min(0).sum(0)
        images += len(x)
        counts = torch.ones(d.shape[1]) if sizes is None else sizes[0, prefix:].float()
    return total / max(images, 1), counts


def cluster(distances: Tensor, sizes: Tensor, left: int, prefix: int) -> tuple[int, ...]:
    """The group of each token, 0 to left - 1, prefix tokens first and alone (see `clusters`)."""
    return clusters(distances, sizes, (left,), prefix)[left]


def clusters(distances: Tensor, sizes: Tensor, wanted: Sequence[int], prefix: int) -> dict[int, tuple[int, ...]]:
    """For each number of tokens in `wanted` the group of each token: Ward's agglomeration (1963).

    The pair whose merge adds least to the squared error within the groups is merged, again and again, with distances
    [n, n] and sizes [n] kept up by the recurrence of Lance and Williams (1967).
    """
    n = len(distances)
    weights = sizes.double().numpy().copy()
    cost = distances.double().numpy() * (weights[:, None] * weights / (weights[:, None] + weights))
    np.fill_diagonal(cost, np.inf)
    group, found = np.arange(n), {}
    for left in range(n + prefix, min(wanted) - 1, -1):
        if left in wanted:
            _, numbers = np.unique(group, return_inverse=True)
            found[left] = (*range(prefix), *(prefix + int(k) for k in numbers))
        i, j = sorted(divmod(int(cost.argmin()), n))
        others = np.isfinite(cost[i]) & np.isfinite(cost[j])
        others[[i, j]] = False
        a, b, c = weights[i], weights[j], weights[others]
        joined = ((a + c) * cost[i, others] + (b + c) * cost[j, others] - c * cost[i, j]) / (a + b + c)
        cost[i, others] = cost[others, i] = joined
        cost[j] = cost[:, j] = np.inf
        weights[i] += b
        group[group == j] = i
    return found
