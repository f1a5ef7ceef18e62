"""A tiny run, for the tests of the loop in one process and in several: `python loop_case.py OUT BATCH`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitedge.data.preprocess import Preprocess
from vitedge.train.augment import make_augment
from vitedge.train.device import has_accelerator
from vitedge.train.feed import Samples
from vitedge.train.images import Normalizer, Pixels
from vitedge.train.loop import Fit, fit, make_accelerator
from vitedge.train.losses import soft_cross_entropy
from vitedge.train.options import AugmentOptions, LoopOptions
from vitedge.train.schedule import parameter_groups
from vitedge.vit.config import uniform
from vitedge.vit.model import VisionTransformer, init_weights

PREPROCESS = Preprocess(18, 16)


@dataclass
class Colours:
    """Which of three channels is brightest; judged on the training images themselves."""

    samples: Samples
    explode_at: int = 0
    killed_at: int = 0
    most: int = 0
    calls: int = 0

    def loss(self, model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.killed_at:
            raise KeyboardInterrupt
        if self.most and len(pixels) > self.most:
            torch.empty(1 << 60, dtype=torch.uint8)  # the allocator's own refusal
        loss = soft_cross_entropy(model(Normalizer(PREPROCESS)(pixels)), targets)
        return loss * float("nan") if self.calls == self.explode_at else loss

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        pixels, targets = (torch.stack(part) for part in zip(*self.samples.source, strict=False))
        logits = model(Normalizer(PREPROCESS)(pixels[:, :, 1:17, 1:17]))
        return {"score": -float(soft_cross_entropy(logits, targets))}


def make_case(seed: int = 0, **case: int) -> tuple[VisionTransformer, Colours]:
    rng = np.random.default_rng(seed)
    labels = np.arange(24) % 3
    pixels = rng.integers(0, 160, (24, 18, 18, 3), dtype=np.uint8)
    pixels[np.arange(24), :, :, labels] += 60
    targets = nn.functional.one_hot(torch.from_numpy(labels), 3).float()
    samples = Samples(
        Pixels(pixels, targets), augment=make_augment(AugmentOptions(jitter=0.1), PREPROCESS), seed=seed
    )
    config = uniform(image_size=16, patch_size=8, width=16, depth=2, heads=2, hidden=32, classes=3)
    return init_weights(VisionTransformer(config), seed), Colours(samples, **case)


def options(**changes: Any) -> LoopOptions:
    return LoopOptions(**{"epochs": 4, "batch": 8, "lr": 3e-3, "evaluations": 4, "precision": "fp32"} | changes)


def run(model: VisionTransformer, case: Colours, chosen: LoopOptions, **more: Any) -> Fit:
    groups = parameter_groups(model, 2, layer_decay=0.9, weight_decay=0.05)
    return fit(model, case, case.samples, chosen, groups, accelerator=make_accelerator(cpu=True), **more)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if not has_accelerator():
        assert make_accelerator().num_processes == int(os.environ.get("WORLD_SIZE", 1)), "each would train alone"
    model, case = make_case()
    run(model, case, options(batch=int(sys.argv[2]), evaluations=1))
    if make_accelerator(cpu=True).is_main_process:
        torch.save(model.state_dict(), Path(sys.argv[1]))
