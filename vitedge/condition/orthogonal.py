"""Orthogonal matrices Q with Q 1 = 1: the rotations of the residual stream that LayerNorm commutes with.

LayerNorm removes the mean over channels and divides by the standard deviation. Both stay when a rotation
keeps the vector of ones: LN(Q x) = Q LN(x). (QuaRot, arXiv 2404.00456, does so for RMSNorm, where any
rotation will do.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def hadamard(size: int) -> Tensor | None:
    """A Hadamard matrix [size, size] with a first row of ones, scaled to be orthogonal; None where this
    builds none.

    Sylvester's doubling of Paley's construction I: sizes 2^k (q + 1) with a prime q = 3 mod 4, which has 192,
    384, 768, 1024 and 1280 in it.
    """
    core = size
    while core > 2 and not _is_paley(core) and core % 2 == 0:
        core //= 2
    if core <= 2:
        matrix = torch.ones(1, 1, dtype=torch.float64)
        if size & (size - 1):
            return None
    elif _is_paley(core):
        matrix = _paley(core)
    else:
        return None
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


def _is_paley(size: int) -> bool:
    q = size - 1
    return q > 2 and q % 4 == 3 and all(q % d for d in range(2, math.isqrt(q) + 1))


def _paley(size: int) -> Tensor:
    q = size - 1
    squares = {(i * i) % q for i in range(1, q)}
    jacobsthal = torch.tensor(
        [[0 if i == j else 1 if (i - j) % q in squares else -1 for j in range(q)] for i in range(q)],
        dtype=torch.float64,
    )
    skew = torch.zeros(size, size, dtype=torch.float64)
    skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, jacobsthal
    matrix = skew + torch.eye(size, dtype=torch.float64)
    return matrix * matrix[0]  # signs of the columns: a first row of ones


def flat_basis(size: int) -> Tensor:
    """Orthogonal [size, size], its first row constant, no entry far above 1/sqrt(size): Hadamard's matrix
    where there is one, else Hartley's (entries up to sqrt(2/size))."""
    matrix = hadamard(size)
    if matrix is not None:
        return matrix
    angle = 2 * math.pi * torch.outer(torch.arange(size), torch.arange(size)).double() / size
    return (angle.cos() + angle.sin()) / math.sqrt(size)


def random_rotation(size: int, seed: int) -> Tensor:
    """A random orthogonal Q [size, size] with Q 1 = 1: Haar on the rest, float64."""
    basis = flat_basis(size)
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(size - 1, size - 1, generator=generator, dtype=torch.float64))
    inner = torch.eye(size, dtype=torch.float64)
    inner[1:, 1:] = q * r.diagonal().sign()
    return basis.T @ inner @ basis


def hadamard_rotation(size: int, seed: int) -> Tensor:
    """H^T D H with random signs D (D[0] = 1): Q 1 = 1, built from the flat basis; float64."""
    basis = flat_basis(size)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
    signs[0] = 1
    return basis.T @ (signs[:, None] * basis)


def spreading_rotation(moment: Tensor, seed: int) -> Tensor:
    """Q [C, C] with Q 1 = 1 that sends the principal directions of a stream onto the rows of the flat basis.

    Args:
        moment: second moment of the centred stream [C, C] (its rows sum to 0).

    Each principal direction then lies equally in all channels (+-1/sqrt(C) where Hadamard's matrix exists),
    so that all channels have the same energy, and a single large direction, as that of massive activations,
    is at its smallest possible maximum. `seed` chooses which direction goes to which row and sign.
    """
    size = len(moment)
    basis = flat_basis(size)
    ones = torch.full((size,), 1 / math.sqrt(size), dtype=torch.float64)
    # The vector of ones is an eigenvector with eigenvalue 0; lifted above all others, it comes out last,
    # exactly.
    lifted = moment.double() + torch.outer(ones, ones) * (2 * torch.linalg.matrix_norm(moment.double()) + 1)
    vectors = torch.linalg.eigh(lifted).eigenvectors[:, :-1]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(size - 1, generator=generator)
    signs = torch.randint(0, 2, (size - 1,), generator=generator).double() * 2 - 1
    # eigh's vectors have an arbitrary sign: fix it, so that the same data give the same rotation.
    pivot = vectors.abs().argmax(0)
    vectors = vectors * vectors[pivot, torch.arange(size - 1)].sign()
    rotation = basis[1:][order].T @ (signs[:, None] * vectors.T) + torch.outer(ones, ones)
    return _orthogonal(rotation)


def _orthogonal(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix)
    return u @ vh
