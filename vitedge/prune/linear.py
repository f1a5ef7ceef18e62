"""The closed forms of pruning: pure functions of matrices, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def damped(covariance: Tensor, damping: float) -> Tensor:
    """The covariance [n, n] with `damping` of its mean diagonal added to the diagonal; never singular."""
    # Of inputs that are constant, rounding leaves a covariance of noise, whose diagonal may be negative. Of any real
    # one the mean is the larger of the two.
    scale = torch.maximum(covariance.diagonal().mean(), covariance.abs().max() / len(covariance))
    scale = scale.clamp_min(torch.finfo(covariance.dtype).tiny)
    return covariance + damping * scale * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)


def ridge(covariance: Tensor, cross: Tensor, damping: float = 1e-4, prior: Tensor | None = None) -> Tensor:
    """The weight [outputs, inputs] that best maps centred inputs to centred outputs.

    Ridge regression: minimises E|y - W x|^2 + damping * mean variance * |W - prior|^2, from the covariance of the
    inputs [inputs, inputs] and their cross-covariance with the outputs [inputs, outputs]. The pull goes to
    `prior` [outputs, inputs], or to zero.
    """
    left = damped(covariance, damping)
    if prior is not None:
        cross = cross + (left - covariance) @ prior.T
    return torch.linalg.solve(left, cross).T


def restrict(weight: Tensor, covariance: Tensor, kept: Tensor, damping: float = 1e-4) -> Tensor:
    """The weight [outputs, kept] on some inputs that best replaces `weight` [outputs, inputs] on all.

    Where nothing is removed, and where the removed inputs are constant, the kept columns are unchanged exactly.
    """
    removed = torch.ones(len(covariance), dtype=torch.bool)
    removed[kept] = False
    removed &= covariance.diagonal() > 0
    if not removed.any():
        return weight[:, kept]
    extra = torch.linalg.solve(damped(covariance[kept][:, kept], damping), covariance[kept][:, removed])
    return weight[:, kept] + weight[:, removed] @ extra.T


def root(matrix: Tensor, floor: float = 1e-9) -> tuple[Tensor, Tensor]:
    """The symmetric square root of a covariance [n, n], and its inverse with tiny directions lifted."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp_min(floor * values.max().clamp_min(torch.finfo(values.dtype).tiny))
    up = values.sqrt()
    return (vectors * up) @ vectors.T, (vectors / up) @ vectors.T


def reduce_logits(queries: Tensor, keys: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Projections a, b [rank, dim] of a head's queries and keys, so that (a q).(b k) is closest to q.k.

    `queries` is E[q q^T], `keys` the covariance of the keys within an image (what all keys of an image share
    shifts each softmax row by a constant, so it doesn't count), both [dim, dim]. The best approximation of rank
    `rank` by Eckart and Young, with q' and k' of equal size; the closed form for logits in CORP (arXiv 2602.05243)
    selects dims, a rotation first loses less and costs nothing.
    """
    up_q, down_q = root(queries)
    up_k, _ = root(keys)
    u, s, _ = torch.linalg.svd(up_q @ up_k)
    u, s = u[:, :rank], s[:rank].clamp_min(s[0] * 1e-6).sqrt()
    return (u * s).T @ down_q, (u / s).T @ up_q


def reduce_values(weight: Tensor, covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A projection b [rank, dim] of a head's values, and the new output weight [outputs, rank].

    `weight` [outputs, dim] reads the head's context, whose covariance is [dim, dim]. Reduced-rank regression: the
    product (new weight) @ b is the closest of its rank to `weight` on such contexts.
    """
    up, down = root(covariance)
    u, s, vt = torch.linalg.svd(weight @ up, full_matrices=False)
    s = s[:rank].clamp_min(s[0] * 1e-6).sqrt()
    return s[:, None] * vt[:rank] @ down, u[:, :rank] * s


def drop(weight: Tensor, inverse: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the Optimal Brain Surgeon: remove some inputs, let the others make up for them.

    From `weight` [outputs, inputs] and the inverse covariance of its inputs [inputs, inputs]: both without the
    columns (and rows) `removed` (Hassibi and Stork, 1993; Frantar and Alistarh, arXiv 2208.11580).
    """
    stays = torch.ones(len(inverse), dtype=torch.bool)
    stays[removed] = False
    gain = torch.linalg.solve(inverse[removed][:, removed], inverse[removed][:, stays])
    weight = torch.addmm(weight[:, stays], weight[:, removed], gain, alpha=-1)
    return weight, torch.addmm(inverse[stays][:, stays], inverse[stays][:, removed], gain, alpha=-1)
