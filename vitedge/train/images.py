"""Images as the loop takes them: uint8 tensors with targets, decoded once where the memory allows it."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from vitedge.data.dataset import Dataset
from vitedge.data.image import UnreadableImage
from vitedge.data.loader import UNREADABLE_SHARE, default_threads
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError


class Normalizer:
    """uint8 [B, 3, H, W] on any device -> what the float model takes, float32 [B, 3, H, W]."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.mean = torch.tensor(preprocess.mean).view(-1, 1, 1)
        self.std = torch.tensor(preprocess.std).view(-1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        if self.mean.device != pixels.device:
            self.mean, self.std = self.mean.to(pixels.device), self.std.to(pixels.device)
        return (pixels.float() / 255 - self.mean) / self.std


class Pixels:
    """Images that are in memory already: uint8 [N, H, W, 3], with a target each (its own index by default)."""

    def __init__(self, pixels: np.ndarray, targets: Tensor | None = None) -> None:
        self.pixels = torch.from_numpy(np.ascontiguousarray(pixels))
        self.targets = torch.arange(len(pixels)) if targets is None else targets

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pixels[index].permute(2, 0, 1), self.targets[index]


class Images:
    """The images of a data set with their class shares float32 [classes] as targets.

    Each is resized as `preprocess` says and not cropped: the augmentation crops. All are decoded at once, in
    threads, where they fit into `memory_mib`; else each time that they are asked for.

    Attributes:
        skipped: the unreadable files, which are left out, as (file, reason).

    Raises:
        VitedgeError: more than 1 % of the files are unreadable.
    """

    def __init__(
        self, dataset: Dataset, preprocess: Preprocess, classes: int, memory_mib: int = 2048
    ) -> None:
        self.dataset, self.preprocess = dataset, preprocess
        self.targets = one_hot(dataset, classes)
        self.skipped: list[tuple[str, str]] = []
        self.held: list[Tensor] | None = None
        # An image is seldom longer than one and a half times its short side.
        size = math.prod(preprocess.resized(3, 2)) * preprocess.bands
        if len(dataset) * size <= memory_mib * 2**20:
            self._decode_all()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.held is not None:
            return self.held[index], self.targets[index]
        try:
            return self._decode(index), self.targets[index]
        except UnreadableImage as error:
            raise VitedgeError(
                f"{error.path} can't be read.", error.reason, "Fix or remove the file.", exit_code=1
            ) from error

    def _decode(self, index: int) -> Tensor:
        image = self.dataset.open(index, **self.preprocess.reading)
        return torch.from_numpy(np.array(self.preprocess.resize_image(image))).permute(2, 0, 1).contiguous()

    def _decode_all(self) -> None:
        def attempt(index: int) -> Tensor | UnreadableImage:
            try:
                return self._decode(index)
            except UnreadableImage as error:
                return error

        with ThreadPoolExecutor(default_threads()) as pool:
            found = list(pool.map(attempt, range(len(self.dataset))))
        good = [i for i, image in enumerate(found) if isinstance(image, Tensor)]
        self.held = [image for image in found if isinstance(image, Tensor)]
        self.targets = self.targets[good]
        self.skipped = [
            (self.dataset.files[i], e.reason) for i, e in enumerate(found) if isinstance(e, UnreadableImage)
        ]
        if len(self.skipped) > UNREADABLE_SHARE * len(self.dataset):
            named = "; ".join(f"{file}: {reason}" for file, reason in self.skipped[:5])
            raise VitedgeError(
                f"Too many images of {self.dataset.root} are unreadable.",
                f"{len(self.skipped)} of {len(self.dataset)}: {named}. Over {UNREADABLE_SHARE:.0%} are an error.",
                "Fix or remove these files.",
            )


def one_hot(dataset: Dataset, classes: int) -> Tensor:
    """The labels as float32 [N, classes]. Raises VitedgeError where there are none, or labels beyond `classes`."""
    labels = torch.from_numpy(dataset.require_labels("Training", classes))
    if dataset.multi_label:
        return labels.float()
    return torch.nn.functional.one_hot(labels.long(), classes).float()
