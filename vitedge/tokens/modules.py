"""Merging as a part of a PyTorch model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vitedge.tokens.matching import compose, join_sizes, match, merge, split_sizes
from vitedge.vit.block import Merge

if TYPE_CHECKING:
    from vitedge.vit.architecture import Architecture


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
        self.chosen: Tensor | None = None
        # What chooses the groups where they are not this merge's own.
        self.leader: Callable[[], Tensor | None] | None = None

    def groups(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """The group of each token [B, N]; the choice itself has no gradient."""
        if not self.config.matched:
            return torch.tensor(self.config.groups, device=x.device).expand(len(x), -1)
        with torch.no_grad():
            return match(x, sizes, self.config.left, self.prefix)

    def forward(self, stream: Tensor, groups: Tensor | None = None) -> Tensor:
        x, sizes = split_sizes(stream, self.width)
        if groups is None:
            groups = self.groups(x, sizes) if self.leader is None else self.leader()
        assert groups is not None
        self.chosen = groups
        for heard in self.listeners:
            heard.append(groups)
        merged, total = merge(x, sizes, groups, self.config.left)
        return join_sizes(self.site(merged), total)


@contextmanager
def following(model: Architecture, leader: Architecture) -> Iterator[None]:
    """Within it, `model` merges the tokens that `leader` merged in its last forward pass, so that their streams can be
    compared token by token."""
    pairs = [
        (block.merge, other.merge)
        for block, other in zip(model.encoder(), leader.encoder(), strict=True)
        if block.merge is not None and other.merge is not None
    ]
    for follower, leading in pairs:
        follower.leader = partial(getattr, leading, "chosen")
    try:
        yield
    finally:
        for follower, _ in pairs:
            follower.leader = None


@contextmanager
def replaying(model: Architecture, groups: Iterable[Tensor]) -> Iterator[None]:
    """Within it, `model` merges by these groups (of `merge_history`), one after another: on the same batches in their
    order, an exactly transformed model then differs by rounding alone, and not by a pair that is equally near."""
    left = iter(groups)
    merges = [block.merge for block in model.encoder() if block.merge is not None]
    for merging in merges:
        merging.leader = partial(next, left)
    try:
        yield
    finally:
        for merging in merges:
            merging.leader = None


def goals(outputs: list[Tensor], model: Architecture, leader: Architecture) -> list[Tensor]:
    """The outputs of the blocks of `model`, as tokens of `leader` after its last forward pass [B, left, C]: the mean of
    those that each stands for, where the leader merges and `model` does not."""
    history, found = None, []
    for output, block, other in zip(outputs, model.encoder(), leader.encoder(), strict=True):
        if other.merge is not None and block.merge is None and other.merge.chosen is not None:
            history = compose(history, other.merge.chosen)
        goal = output[..., : block.width]
        if history is not None and goal.shape[1] == history.shape[1]:
            goal, _ = merge(goal, None, history, int(history.max()) + 1)
        found.append(goal)
    return found


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
