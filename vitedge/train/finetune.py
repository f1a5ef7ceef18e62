"""A trained ViT onto the user's own classes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.reporter import Reporter
from vitedge.train.augment import make_augment, make_mix
from vitedge.train.classify import Classification, Holdout
from vitedge.train.feed import Samples
from vitedge.train.images import Images
from vitedge.train.loop import Fit, Row, fit, make_accelerator
from vitedge.train.losses import class_weights
from vitedge.train.metrics import MetricsLog
from vitedge.train.options import AugmentOptions, FineTuneOptions, LoopOptions
from vitedge.train.output import own_folder, save_folder, write_figures
from vitedge.train.schedule import freeze, parameter_groups
from vitedge.train.split import class_count, class_counts, split_folder
from vitedge.vit.architecture import Architecture

# The head alone gets at most this share of `--minutes`.
HEAD_SHARE = 0.25


def with_new_head(model: Architecture, classes: int, multi_label: bool) -> Architecture:
    """A copy of the model with a head of zeros for `classes`.

    With zeros, the first gradients reach the head only, and what the model knows is not disturbed by noise.
    """
    config = replace(model.config, classes=classes, activation="sigmoid" if multi_label else "softmax")
    fresh = model.fresh(config)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}
    head = {"head.weight": torch.zeros(classes, config.width), "head.bias": torch.zeros(classes)}
    fresh.load_state_dict({**state, **head})
    return fresh


@dataclass(frozen=True)
class _Stage:
    """One call of the loop: what learns in it, with which options, and where its state is kept."""

    what: str
    options: LoopOptions
    state_file: Path


def fine_tune(
    model: Architecture,
    preprocess: Preprocess,
    data: str | Path,
    out: Path,
    options: FineTuneOptions,
    loop: LoopOptions,
    augment: AugmentOptions,
    *,
    classes: tuple[str, ...] | None = None,
    known: list[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Fine-tunes on the data set in `data` and writes a model folder to `out`.

    Args:
        classes: names that the labels index; of the data set by default.
        known: names of the model's present classes: where they are the data set's, its head is kept.
        overwrite: replace the trained model or data set that `out` holds.

    Returns:
        The figures of `training.json`: "score" and more on "part" (test where there is one), of "images".

    Raises:
        VitedgeError: data that can't be trained on, an `out` that holds a model or that another process trains into, a
            run that diverges (its best weights are in `out`), or a full memory.
    """
    with own_folder(out, free=not (resume or overwrite)) if make_accelerator().is_main_process else nullcontext():
        return _fine_tune(
            model, preprocess, data, out, options, loop, augment, classes, known, resume, reporter or Reporter()
        )


def _fine_tune(
    model: Architecture,
    preprocess: Preprocess,
    data: str | Path,
    out: Path,
    options: FineTuneOptions,
    loop: LoopOptions,
    augment: AugmentOptions,
    classes: tuple[str, ...] | None,
    known: list[str] | None,
    resume: bool,
    reporter: Reporter,
) -> dict[str, Any]:
    started, accelerator = time.monotonic(), make_accelerator()
    train, val, test = split_folder(data, options.val_share, loop.seed, classes)
    if known and classes is None and train.classes != tuple(known) and set(train.classes or ()) == set(known):
        train, val, test = split_folder(data, options.val_share, loop.seed, tuple(known))
    names = list(train.classes or [str(i) for i in range(class_count(train))])
    if empty := [name for name, n in zip(names, class_counts(train, len(names)), strict=True) if n == 0]:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        reporter.warn(f"{data} has no images of {', '.join(empty[:5])}{more}: the model will not know them")
    if names != known or (model.config.activation == "sigmoid") != train.multi_label:
        model = with_new_head(model, len(names), train.multi_label)
    images = Images(train, preprocess, len(names))
    for file, reason in images.skipped[:5]:
        reporter.warn(f"left out {file}: {reason}")
    weights = class_weights(images.targets.sum(0)) if options.reweight else None
    task = Classification(
        preprocess,
        Holdout(val, preprocess, len(names)),
        accelerator,
        activation="sigmoid" if model.config.activation == "sigmoid" else "softmax",
        smoothing=options.smoothing,
        weights=weights,
    )
    samples = Samples(images, augment=make_augment(augment, preprocess), mix=make_mix(augment), seed=loop.seed)
    identity = {
        "arch": model.config.to_dict(),
        "data": train.sha256(),
        "training": {**options.model_dump(), **augment.model_dump()},
    }
    log = MetricsLog(out) if accelerator.is_main_process else None
    used = (time.monotonic() - started) / 60
    result: Fit | None = None
    try:
        for stage in _stages(options, loop, out / "state", used, resume):
            freeze(model, len(model.config.blocks), stage.what)
            groups = parameter_groups(
                model,
                len(model.config.blocks),
                layer_decay=stage.options.layer_decay,
                weight_decay=stage.options.weight_decay,
            )
            reporter.info(f"training {stage.what} on {len(images)} images of {len(names)} classes")
            result = fit(
                model,
                task,
                samples,
                stage.options,
                groups,
                accelerator=accelerator,
                state_file=stage.state_file,
                resume=resume,
                identity={**identity, "stage": stage.what},
                log=log,
                progress=_teller(reporter),
            )
    except VitedgeError as error:
        if error.exit_code == 1 and accelerator.is_main_process:
            save_folder(out, model, preprocess, names)
            raise VitedgeError(
                error.what, f"{error.why} {out} has the best weights so far.", error.todo, exit_code=1
            ) from error
        raise
    assert result is not None
    judged = task.holdout if test is None else Holdout(test, preprocess, len(names))
    with torch.no_grad():
        tally = task.tally(model.to(accelerator.device).eval(), judged)
    figures = {
        **tally.figures(),
        "part": "validation" if test is None else "test",
        "images": int(tally.sums[0]),
        "validation_score": result.best["score"],
        "best_step": result.best["step"],
        "steps": result.steps,
        "images_seen": result.images,
        "images_per_second": result.images / max(result.seconds, 1e-9),
        "seconds": time.monotonic() - started,
        "ended": result.ended,
    }
    if accelerator.is_main_process:
        save_folder(out, model, preprocess, names)
        write_figures(out, figures, tally, names)
    return figures


def _stages(
    options: FineTuneOptions, loop: LoopOptions, states: Path, used: float, resume: bool
) -> list[_Stage]:
    """The head alone first, then what `options.train` names; one stage where that is the head."""
    minutes = None if loop.minutes is None else max(loop.minutes - used, 0.01)
    main = _Stage(options.train, loop.model_copy(update={"minutes": minutes}), states / "main.pt")
    if options.train == "head" or options.head_epochs == 0 or (resume and main.state_file.is_file()):
        return [main]
    # The head starts from zeros: it takes a larger step than what it sits on.
    head = {
        "epochs": options.head_epochs,
        "lr": loop.lr * 10,
        "evaluations": 1,
        "ema": 0.0,
        "patience": None,
        "minutes": None if minutes is None else minutes * HEAD_SHARE,
    }
    if minutes is not None:
        main = replace(main, options=loop.model_copy(update={"minutes": minutes * (1 - HEAD_SHARE)}))
    return [_Stage("head", loop.model_copy(update=head), states / "head.pt"), main]


def _teller(reporter: Reporter) -> Callable[[Row], None]:
    def tell(row: Row) -> None:
        reporter.info("  ".join(f"{key} {value:.4g}" for key, value in row.items()))

    return tell
