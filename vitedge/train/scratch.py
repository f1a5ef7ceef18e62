"""A small ViT trained from nothing on small pictures: the model of `vitedge demo`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vitedge.data.preprocess import Preprocess
from vitedge.train.augment import make_augment
from vitedge.train.classify import Classification, Holdout
from vitedge.train.feed import Samples
from vitedge.train.loop import Row, fit, make_accelerator
from vitedge.train.options import AugmentOptions, LoopOptions
from vitedge.train.output import save_folder, write_figures
from vitedge.train.pictures import Pictures
from vitedge.train.schedule import parameter_groups
from vitedge.train.split import split_folder
from vitedge.vit.config import ViTConfig, uniform
from vitedge.vit.model import VisionTransformer, init_weights

PATCH = 8  # pixels; small pictures need small patches


def small_config(side: int, classes: int) -> ViTConfig:
    """A ViT that two cores train in two minutes: 4 blocks of width 96, 3 heads."""
    return uniform(
        image_size=side - side % PATCH,
        patch_size=PATCH,
        width=96,
        depth=4,
        heads=3,
        hidden=384,
        classes=classes,
    )


def train_small_vit(
    folder: Path,
    out: Path,
    minutes: float = 2.0,
    seed: int = 0,
    *,
    epochs: float = 12,
    progress: Callable[[Row], None] | None = None,
) -> dict[str, Any]:
    """Trains on the data set in `folder` and writes a model folder to `out`.

    The data set has `train` and, where it can, `val` and `test` below it, as `split.split_folder` takes it; its
    pictures are small and of one size. Ends after `minutes`, or after `epochs` where that is sooner.

    Returns:
        "top1" of the test part (of the validation part where there is none), "part" which it was, "pictures",
        "val_top1", "steps", "images", "images_per_second", "seconds", "ended".
    """
    started = time.monotonic()
    train, val, test = split_folder(folder, 0.1, seed)
    names = list(train.classes or [])
    with Image.open(train.path(0)) as first:
        config = small_config(min(first.size), len(names))
    preprocess = Preprocess(
        config.image_size, config.image_size, "bicubic", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    )
    accelerator = make_accelerator()
    task = Classification(preprocess, Holdout(val, preprocess, len(names)), accelerator, smoothing=0.1)
    pictures = Pictures(train, preprocess, len(names))
    augment = make_augment(AugmentOptions(scale=0.6), preprocess)
    model = init_weights(VisionTransformer(config), seed)
    used = (time.monotonic() - started) / 60
    options = LoopOptions(
        epochs=epochs,
        minutes=max(minutes - used, 0.05),
        batch=64,
        lr=2e-3,
        warmup=0.1,
        seed=seed,
        evaluations=8,
    )
    groups = parameter_groups(model, len(config.blocks), layer_decay=1.0, weight_decay=options.weight_decay)
    result = fit(
        model,
        task,
        Samples(pictures, augment=augment, seed=seed),
        options,
        groups,
        accelerator=accelerator,
        progress=progress,
    )
    model = model.to(accelerator.device).eval()
    with torch.no_grad():
        judged = task.holdout if test is None else Holdout(test, preprocess, len(names))
        tally = task.tally(model, judged)
    figures = {
        "top1": tally.figures()["top1"],
        "part": "validation" if test is None else "test",
        "pictures": int(tally.sums[0]),
        "val_top1": result.best["top1"],
        "steps": result.steps,
        "images": result.images,
        "images_per_second": result.images / result.seconds,
        "seconds": time.monotonic() - started,
        "ended": result.ended,
    }
    if accelerator.is_main_process:
        save_folder(out, model, preprocess, names)
        write_figures(out, figures, tally, names)
    return figures
