"""What a ViT's blocks put out, collected while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from vitedge.vit.architecture import Architecture


@contextmanager
def block_outputs(model: Architecture) -> Iterator[list[Tensor]]:
    """A list that each forward pass fills anew with every block's output [B, N, C] ([B, 1, C] of the last)."""
    found: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Tensor) -> None:
        found.append(output)

    def clear(_module: object, _inputs: object) -> None:
        found.clear()

    handles = [model.sites()["embed"].register_forward_pre_hook(clear)]
    handles += [block.register_forward_hook(keep) for block in model.blocks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
