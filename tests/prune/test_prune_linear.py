"""The closed forms against float64 references."""

from __future__ import annotations

import pytest
import torch

from vitedge.moments import Moments
from vitedge.prune.candidates import eliminate
from vitedge.prune.linear import drop, reduce_logits, reduce_values, restrict, ridge
from vitedge.prune.sparse import sparsify


def correlated(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    """Inputs with correlated channels, one outlier channel and a mean, float64 [tokens, width]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(width, width, generator=generator, dtype=torch.float64) + 0.5
    x[:, 1] *= 30
    return x


def weight(outputs: int, inputs: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(0)


def test_streamed_moments_are_those_of_the_whole() -> None:
    x, y = correlated(300, 6), correlated(300, 4, seed=5)
    w = torch.rand(300, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    moments = Moments(6, 4)
    for part in range(0, 300, 64):
        at = slice(part, part + 64)
        moments.add(x[at].float(), y[at].float(), w[at].float())
    mean_x = (x * w[:, None]).sum(0) / w.sum()
    mean_y = (y * w[:, None]).sum(0) / w.sum()
    covariance = ((x - mean_x) * w[:, None]).T @ (x - mean_x) / w.sum()
    cross = ((x - mean_x) * w[:, None]).T @ (y - mean_y) / w.sum()
    assert torch.allclose(moments.mean()[0], mean_x, rtol=1e-5)
    assert torch.allclose(moments.covariance(), covariance, rtol=1e-4, atol=1e-5 * covariance.abs().max())
    assert torch.allclose(moments.cross(), cross, rtol=1e-4, atol=1e-5 * cross.abs().max())
    assert moments.tokens == 300


def test_ridge_is_least_squares() -> None:
    x, y = centred(correlated(400, 8)), centred(correlated(400, 5, seed=7))
    reference = torch.linalg.lstsq(x, y).solution.T
    found = ridge(x.T @ x / 400, x.T @ y / 400, damping=0.0)
    assert torch.allclose(found, reference, rtol=1e-8, atol=1e-10)


def test_inputs_that_do_not_vary_leave_the_prior() -> None:
    """Rounding leaves a little noise of their covariance, less than nothing on the diagonal; some never fire."""
    noise = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-8
    covariance = noise + noise.T
    covariance -= torch.eye(8, dtype=torch.float64) * 5e-8
    covariance[3], covariance[:, 3] = 0, 0
    assert covariance.diagonal().mean() < 0
    prior = weight(3, 8)
    found = ridge(covariance, covariance @ weight(3, 8, seed=2).T, damping=1e3, prior=prior)
    torch.testing.assert_close(found, prior, rtol=0, atol=0.05)
    nothing = torch.zeros(8, 8, dtype=torch.float64)
    assert ridge(nothing, nothing[:, :3], prior=prior).isfinite().all()


def test_damped_ridge_is_least_squares_with_rows_for_the_penalty() -> None:
    x, y, prior = centred(correlated(400, 8)), centred(correlated(400, 5, seed=7)), weight(5, 8)
    covariance = x.T @ x / 400
    penalty = (0.1 * covariance.diagonal().mean()).sqrt() * torch.eye(8, dtype=torch.float64)
    rows = torch.cat([x / 400**0.5, penalty])
    wanted = torch.cat([y / 400**0.5, penalty @ prior.T])
    reference = torch.linalg.lstsq(rows, wanted).solution.T
    assert torch.allclose(ridge(covariance, x.T @ y / 400, 0.1, prior), reference, rtol=1e-8, atol=1e-10)


def test_restricted_weight_is_least_squares_on_what_is_kept() -> None:
    x, w = centred(correlated(500, 10)), weight(4, 10)
    kept = torch.tensor([0, 2, 3, 5, 8])
    reference = torch.linalg.lstsq(x[:, kept], x @ w.T).solution.T
    found = restrict(w, x.T @ x / 500, kept, damping=1e-13)
    assert torch.allclose(found, reference, rtol=1e-5, atol=1e-7)


def test_nothing_removed_is_exact() -> None:
    x, w = centred(correlated(50, 6)), weight(3, 6)
    assert torch.equal(restrict(w, x.T @ x, torch.arange(6)), w)


def test_constant_inputs_are_removed_exactly() -> None:
    x, w = centred(correlated(50, 6)), weight(3, 6)
    x[:, 4] = 0
    kept = torch.tensor([0, 1, 2, 3, 5])
    assert torch.equal(restrict(w, x.T @ x, kept), w[:, kept])


def test_dropping_step_by_step_is_solving_at_once() -> None:
    x, w = centred(correlated(500, 9)), weight(4, 9)
    covariance = x.T @ x / 500
    new, inverse = w, torch.linalg.inv(covariance)
    for removed in ([1, 4], [5], [0]):  # of what is left then: 1 and 4, 7, 0
        new, inverse = drop(new, inverse, torch.tensor(removed))
    kept = torch.tensor([2, 3, 5, 6, 8])
    assert torch.allclose(new, restrict(w, covariance, kept, damping=0.0), rtol=1e-6, atol=1e-8)
    assert torch.allclose(inverse, torch.linalg.inv(covariance[kept][:, kept]), rtol=1e-6, atol=1e-8)


def test_greedy_removal_takes_what_costs_least_each_time() -> None:
    x, w = centred(correlated(500, 6)), weight(4, 6)
    covariance = x.T @ x / 500
    found, order = eliminate(w, covariance, torch.arange(6)[:, None], None, [4, 2], 1, 0.0)
    left = list(range(6))
    for gone in order[:4]:
        costs = {i: cost(x, w, [j for j in left if j != i]) for i in left}
        assert gone == min(costs, key=costs.__getitem__)
        left.remove(gone)
    assert sorted(order[4:]) == left and sorted(order) == list(range(6))
    assert torch.allclose(found[2][:, left], restrict(w, covariance, torch.tensor(left), damping=0.0), atol=1e-8)
    assert not found[4][:, order[:2]].any()


def test_whole_heads_are_removed_by_what_they_cost() -> None:
    x, w = centred(correlated(500, 8)), weight(4, 8)
    groups = torch.arange(8).unflatten(0, (4, 2))
    _, order = eliminate(w, x.T @ x / 500, groups, None, [3], 1, 0.0)
    costs = [cost(x, w, [j for j in range(8) if j // 2 != head]) for head in range(4)]
    assert order[0] == costs.index(min(costs))


def cost(x: torch.Tensor, w: torch.Tensor, kept: list[int]) -> float:
    """Squared error of the output where only some inputs are there, the best weight on them taken."""
    y = x @ w.T
    return float((x[:, kept] @ torch.linalg.lstsq(x[:, kept], y).solution - y).pow(2).sum())


def test_logits_of_full_rank_are_exact_and_of_lower_rank_the_best() -> None:
    q, k = correlated(300, 8), centred(correlated(300, 8, seed=3))
    second_q, second_k = q.T @ q, k.T @ k
    a, b = reduce_logits(second_q, second_k, 8)
    assert torch.allclose((q @ a.T) @ (k @ b.T).T, q @ k.T, rtol=1e-4, atol=1e-4 * (q @ k.T).abs().max())
    a, b = reduce_logits(second_q, second_k, 3)
    error = (q @ (a.T @ b - torch.eye(8, dtype=torch.float64)) @ k.T).norm()
    singular = torch.linalg.svdvals(q @ k.T)
    assert error.item() == pytest.approx(singular[3:8].norm().item(), rel=1e-3)


def test_reduced_queries_and_keys_are_of_equal_size() -> None:
    q, k = correlated(300, 8), centred(correlated(300, 8, seed=3))
    a, b = reduce_logits(q.T @ q, k.T @ k, 4)
    assert torch.allclose((q @ a.T).pow(2).sum(0), (k @ b.T).pow(2).sum(0), rtol=1e-4)


def test_values_of_full_rank_are_exact_and_of_lower_rank_the_best() -> None:
    x, w = centred(correlated(300, 8)), weight(16, 8)
    b, new = reduce_values(w, x.T @ x, 8)
    assert torch.allclose(new @ b, w, rtol=1e-5, atol=1e-6)
    b, new = reduce_values(w, x.T @ x, 3)
    assert b.shape == (3, 8) and new.shape == (16, 3)
    error = (x @ (new @ b - w).T).norm()
    assert error.item() == pytest.approx(torch.linalg.svdvals(x @ w.T)[3:].norm().item(), rel=1e-6)


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_sparse_weights_have_the_pattern_and_lose_less_than_plain_zeros(pattern: str) -> None:
    x, w = correlated(2000, 32), weight(24, 32)
    found = sparsify(w, x.T @ x / 2000, pattern, damping=1e-6)
    if pattern == "2:4":
        assert torch.equal((found.unflatten(1, (-1, 4)) == 0).sum(-1), torch.full((24, 8), 2))
        least = w.abs().unflatten(1, (-1, 4)).argsort(-1)[..., :2]
        plain = w.unflatten(1, (-1, 4)).scatter(-1, least, 0.0).flatten(1)
    else:
        assert int((found == 0).sum()) == 24 * 16
        plain = torch.where(w.abs() < w.abs().median(), 0.0, w)
    assert (x @ (found - w).T).norm() < 0.5 * (x @ (plain - w).T).norm()


def test_two_of_four_needs_fours() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        sparsify(weight(3, 6), torch.eye(6), "2:4")
