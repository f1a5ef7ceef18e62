"""Muon for the matrices of the blocks, AdamW for the rest (Jordan et al. 2024; Liu et al., arXiv 2502.16982).

torch has a Muon only from 2.9 on, and an optimiser of its own for each kind of parameter would be two states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitedge.train.schedule import ParameterGroups

# Of the quintic iteration; it brings all singular values into about 0.7 to 1.2 in five steps.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix to `matrix` [M, N], roughly: U Vt of its singular value decomposition."""
    x = matrix / (matrix.norm() + 1e-7)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(steps):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x if wide else x.T


class MuonAdamW(torch.optim.Optimizer):
    """Groups with `muon` set hold matrices and are stepped by Muon; all others by AdamW.

    Muon's update is scaled to the root mean square that AdamW's has (0.2), so one learning rate suits both.
    """

    def __init__(self, groups: ParameterGroups, lr: float) -> None:
        defaults = {"lr": lr, "weight_decay": 0.0, "betas": (0.9, 0.99), "eps": 1e-8, "momentum": 0.95, "muon": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._muon if group["muon"] else self._adam
                parameter.add_(update(parameter.grad, self.state[parameter], group), alpha=-group["lr"])

    def _muon(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        momentum = state.setdefault("momentum", torch.zeros_like(gradient))
        momentum.lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(momentum, group["momentum"])
        return orthogonalize(ahead) * (0.2 * max(ahead.shape) ** 0.5)

    def _adam(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["step"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient.square(), 1 - second)
        count = float(state["step"])
        root = (state["square"] / (1 - second**count)).sqrt_().add_(group["eps"])
        return state["mean"] / (1 - first**count) / root
