"""Throughput of vitedge's training loop beside a bare PyTorch loop: same model, batch, precision and optimiser.

    python benchmarks/train_loop.py --model tiny --batch 16 --steps 8 --rounds 5

The two take turns, so that a busy machine disturbs both alike; the figure is the median of the rounds' ratios.
Both read the same images from memory without augmentation. Times are of the process's CPU where there is no GPU
and `--cpu-time` is given: on a shared machine that is steadier than the wall clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import torch
from torch import nn

from vitedge.data.preprocess import Preprocess
from vitedge.train.device import autocast
from vitedge.train.feed import Samples
from vitedge.train.images import Normalizer, Pixels
from vitedge.train.loop import fit, make_accelerator
from vitedge.train.losses import soft_cross_entropy
from vitedge.train.options import LoopOptions
from vitedge.train.schedule import parameter_groups
from vitedge.vit.config import uniform
from vitedge.vit.model import VisionTransformer, init_weights

MODELS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
PREPROCESS = Preprocess(256, 224)


class Timed:
    """The loop's task; notes the time of each call of `loss`, so that start and end don't count."""

    def __init__(self, clock, device) -> None:
        self.clock, self.times, self.device = clock, [], device
        self.normalize = Normalizer(PREPROCESS)

    def loss(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(self.clock())
        return soft_cross_entropy(model(self.normalize(pixels)), targets)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"score": 0.0}


def through_the_loop(model, pixels, targets, options, accelerator, clock) -> float:
    """Seconds a step, of the steps after the first."""
    task = Timed(clock, accelerator.device)
    groups = parameter_groups(model, len(model.blocks), layer_decay=1.0, weight_decay=0.05)
    samples = Samples(Pixels(pixels, targets))
    fit(model, task, samples, options, groups, accelerator=accelerator)
    return (task.times[-1] - task.times[1]) / (len(task.times) - 2)


def bare(model, pixels, targets, options, device, clock) -> float:
    """The same by hand."""
    model.to(device).train()
    normalize, times = Normalizer(PREPROCESS), []
    groups = parameter_groups(model, len(model.blocks), layer_decay=1.0, weight_decay=0.05)
    optimizer = torch.optim.AdamW(groups, lr=options.lr, fused=True)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    steps = round(options.epochs * len(pixels) / options.batch)
    for _ in range(steps):
        chosen = torch.randint(len(images), (options.batch,))
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock())
        x, y = images[chosen].to(device), targets[chosen].to(device)
        with autocast(device, options.precision):
            loss = soft_cross_entropy(model(normalize(x)), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        optimizer.zero_grad()
    return (times[-1] - times[1]) / (len(times) - 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    width, depth, heads = MODELS[given.model]
    config = uniform(
        image_size=224, patch_size=16, width=width, depth=depth, heads=heads, hidden=4 * width, classes=1000
    )
    count = given.batch * 2
    pixels = np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)
    targets = nn.functional.one_hot(torch.arange(count) % 1000, 1000).float()
    options = LoopOptions(
        epochs=given.steps * given.batch / count,
        batch=given.batch,
        layer_decay=1.0,
        evaluations=1,
        precision=given.precision,
    )
    clock = time.process_time if given.cpu_time else time.perf_counter
    accelerator = make_accelerator()
    ratios, speeds = [], []
    for turn in range(given.rounds):
        models = [init_weights(VisionTransformer(config)) for _ in range(2)]
        parts = [
            lambda: through_the_loop(models[0], pixels, targets, options, accelerator, clock),  # noqa: B023
            lambda: bare(models[1], pixels, targets, options, accelerator.device, clock),  # noqa: B023
        ]
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        seconds = {i: parts[i]() for i in order}
        ratios.append(seconds[1] / seconds[0])
        speeds.append((given.batch / seconds[0], given.batch / seconds[1]))
        print(
            f"round {turn}: loop {speeds[-1][0]:.1f}, bare {speeds[-1][1]:.1f} images a second, "
            f"ratio {ratios[-1]:.3f}"
        )
    result = {
        "model": given.model,
        "batch": given.batch,
        "device": accelerator.device.type,
        "clock": "cpu time" if given.cpu_time else "wall time",
        "threads": torch.get_num_threads(),
        "ratio_median": statistics.median(ratios),
        "ratios": ratios,
        "images_per_second_loop": statistics.median(s[0] for s in speeds),
        "images_per_second_bare": statistics.median(s[1] for s in speeds),
    }
    print(json.dumps(result))
    if given.json:
        with open(given.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
