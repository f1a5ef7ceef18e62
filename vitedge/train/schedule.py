"""The learning rate and the parameter groups. Pure functions: nothing here has a state to save."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from vitedge.errors import VitedgeError
from vitedge.vit.names import is_added, layer_index

# As torch.optim takes them: parameters, and what holds for them.
ParameterGroups = list[dict[str, Any]]


def lr_factor(progress: float, warmup: float, final: float, schedule: str = "cosine") -> float:
    """Share of the peak learning rate at `progress` (0 to 1) of the run: linear warm-up, then down to `final`.

    By the cosine of SGDR without restarts (Loshchilov and Hutter, arXiv 1608.03983), by a line, or not at all.
    """
    if progress < warmup:
        return progress / warmup
    rest = min(1.0, (progress - warmup) / (1 - warmup))
    if schedule == "constant":
        return 1.0
    return final + (1 - final) * (1 - rest if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * rest)))


def parameter_groups(model: nn.Module, depth: int, *, layer_decay: float, weight_decay: float) -> ParameterGroups:
    """Groups for AdamW of the parameters that take gradients, each with its `scale` of the learning rate.

    Layer-wise decay as in BEiT (arXiv 2106.08254): layer l of L learns with `layer_decay` ** (L - l).
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = layer_decay ** (depth + 1 - layer_index(name, depth))
        decayed = parameter.ndim > 1 and not is_added(name)
        decay = weight_decay if decayed else 0.0
        group = groups.setdefault((scale, decay), {"params": [], "scale": scale, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def freeze(model: nn.Module, depth: int, what: str) -> None:
    """Lets only `what` of the model learn: "head", "last-N" (N blocks, final norm and head) or "all".

    Raises:
        VitedgeError: for any other word, or more blocks than there are.
    """
    if what == "all":
        first = 0
    elif what == "head":
        first = depth + 1
    elif what.startswith("last-") and what[5:].isdigit() and 1 <= int(what[5:]) <= depth:
        first = depth + 1 - int(what[5:])
    else:
        raise VitedgeError(
            f"--train {what} is not known.",
            f"The model has {depth} blocks.",
            f"Use head, all, or last-N with N from 1 to {depth}.",
        )
    for name, parameter in model.named_parameters():
        head_only = what == "head" and not name.startswith("head")
        parameter.requires_grad_(layer_index(name, depth) >= first and not head_only)
