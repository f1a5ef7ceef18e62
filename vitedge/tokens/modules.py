"""Merging as a part of a PyTorch model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitedge.tokens.matching import compose, join_sizes, match, merge, split_sizes
from vitedge.vit.config import Merge


class TokenMerge(nn.Module):
    """A stream [B, N, C] or [B, N, C + 1] -> [B, left, C + 1] (see `vitedge.tokens`).

    `site`: where the merged tokens [B, left, C] can be observed. `forward` appends its groups [B, N] to each of
    `listeners`.
    """

    def __init__(self, config: Merge, width: int, prefix: int, site: nn.Module) -> None:
        super().__init__()
        self.config, self.width, self.prefix = config, width, prefix
        self.site = site
        self.listeners: list[list[Tensor]] = []

    def groups(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """The group of each token [B, N]; the choice itself has no gradient."""
        if not self.config.matched:
            return torch.tensor(self.config.groups, device=x.device).expand(len(x), -1)
        with torch.no_grad():
            return match(x, sizes, self.config.left, self.prefix)

    def forward(self, stream: Tensor) -> Tensor:
        x, sizes = split_sizes(stream, self.width)
        groups = self.groups(x, sizes)
        for heard in self.listeners:
            heard.append(groups)
        merged, total = merge(x, sizes, groups, self.config.left)
        return join_sizes(self.site(merged), total)


@contextmanager
def merge_history(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that a forward of the model (or of a block) fills with the groups [B, N] of each merge, in its order."""
    heard: list[Tensor] = []
    merges = [module for module in model.modules() if isinstance(module, TokenMerge)]
    for module in merges:
        module.listeners.append(heard)
    try:
        yield heard
    finally:
        for module in merges:
            module.listeners = [other for other in module.listeners if other is not heard]


def whole_history(merges: list[Tensor]) -> Tensor | None:
    """Where each of the image's own tokens is after all of these merges [B, N]; None where there was none."""
    history: Tensor | None = None
    for groups in merges:
        history = compose(history, groups)
    return history
