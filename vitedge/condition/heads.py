"""Inside attention, per head: keys and values centred, q balanced against k, v against the output projection.
Exact.

Scores are q^T k: any invertible M may go between them (q -> M^T q, k -> M^-1 k). A constant added to all keys
adds the same to all scores of a query, which the softmax does not see. A constant in all values goes through
the softmax unchanged, since its rows sum to 1, and can be added by the output projection's bias instead.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vitedge.condition.orthogonal import flat_basis
from vitedge.condition.ranges import hooked, measure
from vitedge.condition.smooth import smooth_scales
from vitedge.condition.surgery import assign
from vitedge.moments import Moments
from vitedge.vit.architecture import Architecture
from vitedge.vit.layers import Attention


def balancing(cov_q: Tensor, cov_k: Tensor) -> tuple[Tensor, Tensor]:
    """(A, B) [d, d] with A^T B = 1: q' = A q and k' = B k have equal, diagonal second moments, spread evenly.

    The moments of q and k [d, d] are diagonalised at once (balanced truncation's transform, Moore 1981),
    which gives q' and k' the same energy in each direction; the flat basis then gives it equally to all
    channels.
    """
    d = len(cov_q)
    low_q, low_k = (_cholesky(c) for c in (cov_q, cov_k))
    u, s, _ = torch.linalg.svd(low_q.T @ low_k)
    root = s.clamp_min(s.max() * 1e-6).sqrt()
    # M^T cov_q M = M^-1 cov_k M^-T = diag(s), with M = low_q^-T u root.
    m = torch.linalg.solve_triangular(low_q.T, u * root, upper=True)
    basis = flat_basis(d)
    return basis.T @ m.T, basis.T @ torch.linalg.inv(m)


def _cholesky(cov: Tensor) -> Tensor:
    """With a floor under the eigenvalues, so that the transform stays well conditioned in float32.

    Of what never varies beside a large mean, rounding leaves eigenvalues below 0: the floor rises until it covers them.
    """
    floor = 1e-3 * cov.diagonal().mean().abs().clamp_min(1e-12)
    while True:
        factor, failed = torch.linalg.cholesky_ex(cov + floor * torch.eye(len(cov), dtype=cov.dtype))
        if not failed or not torch.isfinite(floor):
            return factor
        floor = floor * 10


@torch.no_grad()
def balance_heads(model: Architecture, batches: Iterable[Tensor]) -> None:
    """Centres keys and values, balances q with k, spreads v over its head and scales it against `out`, in
    place."""
    moments = _moments(model, batches)
    for i, block in enumerate(model.encoder()):
        if block.attention is None:
            continue
        a = block.attention
        # The context's mean, not the values': attention prefers some tokens, and what is left is what is
        # rounded.
        q, k, context = (moments[f"block{i}.attention.{part}"] for part in ("q", "k", "context"))
        if a.config.free_logits:
            # A constant in q is read, in keys and values it is not.
            _balance_qk(a, _heads(q.xx / q.weight, a), _heads(k.covariance(), a), k.mean()[0])
        _spread_v(a, _heads(context.covariance(), a), context.mean()[0])


@torch.no_grad()
def scale_values(model: Architecture, batches: Iterable[Tensor]) -> dict[str, float]:
    """SmoothQuant's scales between v and the output projection, and between the two products of a gated MLP, which are
    linear in fc1; in place. Returns site -> alpha (0: off)."""
    pairs: dict[str, tuple[nn.Linear, nn.Linear]] = {}
    for i, block in enumerate(model.encoder()):
        if block.attention is not None:
            pairs[f"block{i}.attention.context"] = block.attention.v, block.attention.out
        if block.mlp is not None and block.config.gated and not block.config.groups:
            pairs[f"block{i}.mlp.gelu"] = block.mlp.fc1, block.mlp.fc2
    stats = measure(model, batches, pairs)
    chosen = {}
    for name, (first, second) in pairs.items():
        scales, chosen[name] = smooth_scales(stats[name], second.weight)
        if chosen[name]:
            assign(first.weight, first.weight.double() / scales[:, None])
            assign(first.bias, first.bias.double() / scales)
            assign(second.weight, second.weight.double() * scales)
    return chosen


def _balance_qk(a: Attention, cov_q: Tensor, cov_k: Tensor, mean_k: Tensor) -> None:
    assign(a.k.bias, a.k.bias.double() - mean_k)
    d = a.config.qk_dim
    for h in range(a.config.heads):
        rows = slice(h * d, (h + 1) * d)
        to_q, to_k = balancing(cov_q[h], cov_k[h])
        for linear, change in ((a.q, to_q), (a.k, to_k)):
            assign(linear.weight[rows], change @ linear.weight[rows].double())
            assign(linear.bias[rows], change @ linear.bias[rows].double())


def _spread_v(a: Attention, cov: Tensor, mean_v: Tensor) -> None:
    assign(a.out.bias, a.out.bias.double() + a.out.weight.double() @ mean_v)
    assign(a.v.bias, a.v.bias.double() - mean_v)
    d = a.config.v_dim
    for h in range(a.config.heads):
        rows = slice(h * d, (h + 1) * d)
        vectors = torch.linalg.eigh(cov[h]).eigenvectors
        pivot = vectors.abs().argmax(0)
        rotation = flat_basis(d).T @ (vectors * vectors[pivot, torch.arange(d)].sign()).T
        assign(a.v.weight[rows], rotation @ a.v.weight[rows].double())
        assign(a.v.bias[rows], rotation @ a.v.bias[rows].double())
        assign(a.out.weight[:, rows], a.out.weight[:, rows].double() @ rotation.T)


def _heads(second: Tensor, a: Attention) -> Tensor:
    """The blocks of a second moment [C, C] that belong to single heads [heads, d, d]."""
    d = len(second) // a.config.heads
    return torch.stack([second[h * d : (h + 1) * d, h * d : (h + 1) * d] for h in range(a.config.heads)])


def _moments(model: Architecture, batches: Iterable[Tensor]) -> dict[str, Moments]:
    sites = {n: s for n, s in model.sites().items() if n.split(".")[-1] in ("q", "k", "v", "context")}
    moments: dict[str, Moments] = {}

    def see(name: str, x: Tensor) -> None:
        moments.setdefault(name, Moments(x.shape[-1])).add(x)

    with hooked(sites, see):
        for batch in batches:
            model(batch)
    return moments
