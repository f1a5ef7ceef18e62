"""Small operations on a model's layers that several transforms share."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """`parameter` <- `value`, in the parameter's type."""
    parameter.copy_(value.to(parameter.dtype).reshape(parameter.shape))
