"""Structured pruning that keeps the accuracy without training.

What is removed: MLP units, heads, and dims of heads. Which: those whose removal moves the logits least for the MACs
it saves. What is left is fitted, block after block, to what the dense model computed on the calibration images.
Importing this package imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vitedge.prune.options import PruneOptions
from vitedge.prune.result import LayerChange, PruneReport

if TYPE_CHECKING:
    from torch import Tensor

    from vitedge.reporter import Reporter
    from vitedge.vit.architecture import Architecture

__all__ = ["LayerChange", "PruneOptions", "PruneReport", "prune"]


def prune(
    model: Architecture,
    batches: Callable[[], Iterator[Tensor]],
    options: PruneOptions,
    progress: Reporter | None = None,
) -> tuple[Architecture, PruneReport]:
    """A smaller model with its own configuration, and what was done. `model` is left as it is.

    batches: each call gives the calibration images anew, normalised float32 [B, C, H, W], in the same order.
    Raises VitedgeError where the constraints don't allow the share, or there are too few images.
    """
    from vitedge.prune.run import run

    return run(model, batches, options, progress)
