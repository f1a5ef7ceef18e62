"""A small ViT trained from nothing on small images: the model of `vitedge demo`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vitedge.data.preprocess import Preprocess
from vitedge.train.augment import turn
from vitedge.train.classify import Classification, Holdout
from vitedge.train.feed import Samples
from vitedge.train.images import Images
from vitedge.train.loop import Row, fit, make_accelerator
from vitedge.train.muon import MuonAdamW
from vitedge.train.options import LoopOptions
from vitedge.train.output import save_folder, write_figures
from vitedge.train.schedule import ParameterGroups
from vitedge.train.split import split_folder
from vitedge.vit.architecture import Architecture
from vitedge.vit.config import ViTConfig, uniform
from vitedge.vit.local_init import init_local
from vitedge.vit.names import layer_index

SIDE = 48  # pixels


def small_config(classes: int) -> ViTConfig:
    """4 blocks of width 192 on 64 patches of 6 pixels: 69 million MACs.

    What two cores can train in two minutes, and large enough that products, and not the overhead of operators, take
    the time: in INT8 or with fewer tokens it is faster. At width 64 it was not.
    """
    return uniform(image_size=SIDE, patch_size=6, width=192, depth=4, heads=4, hidden=384, classes=classes)


def muon_groups(model: Architecture) -> ParameterGroups:
    """The blocks' matrices for Muon, all else for AdamW."""
    depth = len(model.blocks)
    matrices = [p for n, p in model.named_parameters() if 0 < layer_index(n, depth) <= depth and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        {"params": matrices, "muon": True, "scale": 5.0, "weight_decay": 0.01},
        {"params": rest, "muon": False, "scale": 1.0, "weight_decay": 0.0},
    ]


def train_small_vit(
    folder: Path,
    out: Path,
    minutes: float = 2.0,
    seed: int = 0,
    *,
    epochs: float = 30,
    model: Architecture | None = None,
    progress: Callable[[Row], None] | None = None,
) -> dict[str, Any]:
    """Trains on the data set in `folder` and writes a model folder to `out`.

    The data set has `train` and, where it can, `val` and `test` below it, as `split.split_folder` takes it; its
    classes depend neither on colour nor on which side is up. Ends after `minutes`, or after `epochs` where that
    is sooner.

    Args:
        model: another one of as many classes to train, in the place of `small_config`'s.

    Returns:
        "top1" of the test part (of the validation part where there is none), "part" which it was, "images",
        "val_top1", "steps", "images_seen", "images_per_second", "seconds", "ended".
    """
    started = time.monotonic()
    train, val, test = split_folder(folder, 0.1, seed)
    names = list(train.classes or [])
    model = model or init_local(small_config(len(names)), seed)
    side = model.config.image_size
    preprocess = Preprocess(side[0], side, "bicubic", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    accelerator = make_accelerator()
    task = Classification(preprocess, Holdout(val, preprocess, len(names)), accelerator, smoothing=0.05)
    images = Images(train, preprocess, len(names))
    used = (time.monotonic() - started) / 60
    options = LoopOptions(
        epochs=epochs,
        minutes=max(minutes - used, 0.05),
        batch=64,
        lr=2e-3,
        layer_decay=1.0,
        warmup=0.1,
        final_lr=0.0,
        precision="fp32",
        seed=seed,
        evaluations=8,
    )
    groups = muon_groups(model)
    result = fit(
        model,
        task,
        Samples(images, mix=turn, seed=seed),
        options,
        groups,
        optimizer=MuonAdamW(groups, options.lr),
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
        "images": int(tally.sums[0]),
        "val_top1": result.best["top1"],
        "steps": result.steps,
        "images_seen": result.images,
        "images_per_second": result.images / result.seconds,
        "seconds": time.monotonic() - started,
        "ended": result.ended,
    }
    if accelerator.is_main_process:
        save_folder(out, model, preprocess, names)
        write_figures(out, figures, tally, names)
    return figures
