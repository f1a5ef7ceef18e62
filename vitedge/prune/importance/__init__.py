"""What ranks the inputs of the layer that ends a half: MLP units, or whole heads. One importance a file.

Each is a function of a `Layer` that returns a score for each group of inputs, [groups], or None for the greedy
order of `vitedge.prune.candidates.eliminate`. The lowest score goes first.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from vitedge.options import register
from vitedge.prune.importance.hessian import hessian
from vitedge.prune.importance.layer import Layer
from vitedge.prune.importance.magnitude import magnitude
from vitedge.prune.importance.obs import obs
from vitedge.prune.importance.taylor import taylor

IMPORTANCES: dict[str, Callable[[Layer], Tensor | None]] = {
    "obs": obs,
    "hessian": hessian,
    "taylor": taylor,
    "magnitude": magnitude,
}
NEEDS_GRADIENTS = {"hessian", "taylor"}


def importance(function: Callable[[Layer], Tensor | None]) -> Callable[[Layer], Tensor | None]:
    """Registers an importance under its function's name, for `--importance`."""
    IMPORTANCES[function.__name__] = function
    register("importance", function.__name__)
    return function


__all__ = ["IMPORTANCES", "NEEDS_GRADIENTS", "Layer", "importance"]
