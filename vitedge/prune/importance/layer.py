"""What an importance may look at."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """The two Linears around a set of groups of activations (MLP units, heads).

    Attributes:
        into: weight of the Linear that makes them, [groups * size, C]; of those that do, side by side, for gated units.
        out: weight of the Linear that reads them, [C, groups * size].
        size: activations in a group.
        first, second: mean of |g| and of g^2, [groups] each, where g is one image's first-order change of a
            drawn output's log probability when the group is held at its mean; None where not asked for.
    """

    into: Tensor
    out: Tensor
    size: int
    first: Tensor | None = None
    second: Tensor | None = None
