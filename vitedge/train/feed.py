"""Which image is seen when, and with which random changes.

Everything random is drawn from a seed made of (run's seed, epoch, image). The place in the run is thus the whole
state of the feed: a resumed run continues bit for bit, and two processes draw what one with twice the batch draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Key = tuple[int, int]
Augment = Callable[[Tensor], Tensor]
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Source(Protocol):
    """Labelled images: `source[i]` is uint8 [3, H, W] and a target tensor of one shape for all."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]: ...


def draw_seed(*parts: int) -> int:
    """One seed of several whole numbers, the same in every process (Python salts only the hashes of text)."""
    return hash(parts) & 0x7FFF_FFFF_FFFF_FFFF


class Order:
    """Endless lists of (image, epoch): what one process computes, batch by batch, from optimiser step `start`.

    The epochs' permutations follow one another without a gap, so no image is dropped at an epoch's end. Each
    step takes batch * accumulate * world of them; process r takes the r-th batch of each `world` batches.
    """

    def __init__(
        self,
        count: int,
        batch: int,
        *,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        start: int = 0,
        weights: Tensor | None = None,
    ) -> None:
        self.count, self.batch, self.accumulate, self.weights = count, batch, accumulate, weights
        self.rank, self.world, self.seed, self.start = rank, world, seed, start

    def epoch(self, number: int) -> list[int]:
        """The permutation of epoch `number`; with weights, as many images drawn by them, repeatedly."""
        generator = torch.Generator().manual_seed(draw_seed(self.seed, number))
        if self.weights is not None:
            return torch.multinomial(self.weights, self.count, replacement=True, generator=generator).tolist()
        return torch.randperm(self.count, generator=generator).tolist()

    def __iter__(self) -> Iterator[list[Key]]:
        micro = self.start * self.accumulate
        number, order = -1, []
        while True:
            first = (micro * self.world + self.rank) * self.batch
            keys = []
            for place in range(first, first + self.batch):
                if place // self.count != number:
                    number = place // self.count
                    order = self.epoch(number)
                keys.append((order[place % self.count], number))
            yield keys
            micro += 1


class Samples(Dataset):
    """A source with its augmentation; fetches a whole batch by its keys.

    weights: how often each image is shown [N], relative to the others; evenly where None.
    """

    def __init__(
        self,
        source: Source,
        *,
        augment: Augment | None = None,
        mix: Mix | None = None,
        seed: int = 0,
        weights: Tensor | None = None,
    ) -> None:
        self.source, self.augment, self.mix, self.seed, self.weights = source, augment, mix, seed, weights

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        pixels, targets = [], []
        for index, epoch in keys:
            image, target = self.source[index]
            if self.augment is not None:
                # torchvision's transforms draw from the process's generator and take no other.
                torch.default_generator.manual_seed(draw_seed(self.seed, epoch, index))
                image = self.augment(image)
            pixels.append(image)
            targets.append(target)
        batch = torch.stack(pixels), torch.stack(targets)
        if self.mix is None:
            return batch
        torch.default_generator.manual_seed(draw_seed(self.seed, keys[0][1], keys[0][0], len(self)))
        return self.mix(*batch)


def feed(samples: Samples, order: Order, workers: int = 0, pin: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches (uint8 [B, 3, H, W], targets) in the given order."""
    loader: DataLoader = DataLoader(
        samples,
        batch_sampler=order,  # type: ignore[arg-type]
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
    )
    return iter(loader)


def _as_it_is(batch: Any) -> Any:
    return batch
