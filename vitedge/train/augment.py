"""Random changes of training images, from torchvision's transforms v2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitedge.data.preprocess import Preprocess
from vitedge.errors import missing_package
from vitedge.train.feed import Augment, Mix
from vitedge.train.options import AugmentOptions


def make_augment(options: AugmentOptions, preprocess: Preprocess) -> Augment:
    """uint8 [3, h, w] -> uint8 [3, crop, crop], with random changes from torch's own generator.

    Random resized crop and flip as in every ViT's training; RandAugment is arXiv 1909.13719."""
    v2 = _transforms()
    size = preprocess.size
    steps: list[Callable] = []
    if options.scale < 1:
        steps.append(
            v2.RandomResizedCrop(size, scale=(options.scale, 1.0), ratio=(3 / 4, 4 / 3), antialias=True)
        )
    else:
        steps.append(v2.CenterCrop(size))
    if options.flip:
        steps.append(v2.RandomHorizontalFlip())
    if options.randaugment:
        steps.append(v2.RandAugment(2, options.randaugment))
    if options.jitter:
        j = options.jitter
        steps.append(v2.ColorJitter(brightness=j, contrast=j, saturation=j))
    return v2.Compose(steps)


def make_mix(options: AugmentOptions) -> Mix | None:
    """(uint8 [B, 3, H, W], class shares [B, C]) -> the same, mixed; None where the options ask for no mixing.

    MixUp is arXiv 1710.09412, CutMix 1905.04899; with both, one of them is drawn for each batch.
    The partners are the batch in reverse: the batch is in random order already.
    """
    if not (options.mixup or options.cutmix):
        return None
    _transforms()

    def mix(pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        cut = bool(options.cutmix) and (not options.mixup or float(torch.rand(())) < 0.5)
        alpha = options.cutmix if cut else options.mixup
        share = float(torch._sample_dirichlet(torch.tensor([alpha, alpha]))[0])
        if not cut:
            mixed = (pixels.float() * share + pixels.flip(0).float() * (1 - share)).round().to(torch.uint8)
            return mixed, targets * share + targets.flip(0) * (1 - share)
        height, width = pixels.shape[2:]
        rows, columns = (round(edge * (1 - share) ** 0.5) for edge in (height, width))
        top = int(torch.randint(height - rows + 1, ()))
        left = int(torch.randint(width - columns + 1, ()))
        mixed = pixels.clone()
        window = (slice(None), slice(None), slice(top, top + rows), slice(left, left + columns))
        mixed[window] = pixels.flip(0)[window]
        share = 1 - rows * columns / (height * width)
        return mixed, targets * share + targets.flip(0) * (1 - share)

    return mix


def turn(pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The batch uint8 [B, 3, H, W] in one of eight positions (quarter turns, mirrored), its colours exchanged.

    For images whose class depends on neither: drawn shapes.
    """
    if float(torch.rand(())) < 0.5:
        pixels = pixels.flip(3)
    pixels = pixels.rot90(int(torch.randint(4, ())), (2, 3))
    return pixels[:, torch.randperm(3)], targets


def _transforms() -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise missing_package("torchvision", "compress", "Augmentation") from error
    return v2
