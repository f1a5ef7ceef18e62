"""A trained ViT onto the user's own classes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from vitedge.data.classes import some
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.reporter import Reporter
from vitedge.train.augment import make_augment, make_mix
from vitedge.train.classify import Classification, Holdout
from vitedge.train.feed import Samples
from vitedge.train.fewshot import fit_head
from vitedge.train.images import Images, Normalizer
from vitedge.train.loop import Fit, Row, fit, make_accelerator
from vitedge.train.losses import class_weights
from vitedge.train.metrics import MetricsLog
from vitedge.train.options import AugmentOptions, FineTuneOptions, LoopOptions
from vitedge.train.output import own_folder, save_folder, write_figures
from vitedge.train.schedule import freeze, parameter_groups
from vitedge.train.split import balanced, class_count, class_counts, parse_fold, split_folder
from vitedge.train.teacher import load_teacher
from vitedge.vit.architecture import Architecture
from vitedge.vit.checkpoint.save import build_model
from vitedge.vit.resize import resize_model

# The head alone gets at most this share of `--minutes`.
HEAD_SHARE = 0.25


def with_new_head(model: Architecture, classes: int, multi_label: bool) -> Architecture:
    """A copy of the model with heads of zeros for `classes`, one for each part that it pools.

    With zeros, the first gradients reach the head only, and what the model knows is not disturbed by noise. A backbone
    without a classifier gets one on what its embedding reads: a projection and the scaling to a norm of 1 are left out.
    Raises VitedgeError where the output is of every patch.
    """
    if "patches" in model.config.pool:
        raise VitedgeError(
            "A model that gives an embedding of every patch can't be a classifier.", "", "Leave --output out."
        )
    activation: Literal["softmax", "sigmoid"] = "sigmoid" if multi_label else "softmax"
    config = replace(model.config, classes=classes, activation=activation, normalize=False)
    fresh = model.fresh(config)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(("head.", "heads."))}
    heads = [name for name, _ in fresh.named_parameters() if name.startswith(("head.", "heads."))]
    shapes = {"weight": (classes, config.last_width), "bias": (classes,)}
    zeros = {name: torch.zeros(shapes[name.rpartition(".")[2]]) for name in heads}
    fresh.load_state_dict({**state, **zeros})
    return fresh


@dataclass(frozen=True)
class _Stage:
    """One call of the loop: what learns in it, at which resolution, with which options, where its state is kept."""

    what: str
    size: tuple[int, int]
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
    with (
        own_folder(out, free=not (resume or overwrite))
        if make_accelerator(precision=loop.precision).is_main_process
        else nullcontext()
    ):
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
    started, accelerator = time.monotonic(), make_accelerator(precision=loop.precision)
    fold = None if options.fold is None else parse_fold(options.fold)
    train, val, test = split_folder(data, options.val_share, loop.seed, classes, fold)
    if known and classes is None and train.classes != tuple(known) and set(train.classes or ()) == set(known):
        train, val, test = split_folder(data, options.val_share, loop.seed, tuple(known), fold)
    names = list(train.classes or [str(i) for i in range(class_count(train))])
    counts = class_counts(train, len(names))
    if empty := [name for name, n in zip(names, counts, strict=True) if n == 0]:
        reporter.warn(f"{data} has no images of {some(empty)}: the model will not know them")
    if names != known or (model.config.activation == "sigmoid") != train.multi_label:
        model = with_new_head(model, len(names), train.multi_label)
    activation: Literal["softmax", "sigmoid"] = "sigmoid" if train.multi_label else "softmax"
    teacher = None if options.teacher is None else load_teacher(options.teacher, names, accelerator.device)
    log: MetricsLog | None = None
    judge = Classification(preprocess, Holdout(val, preprocess, len(names)), accelerator, activation=activation)
    result: Fit | None = None
    if options.shots is not None:
        reporter.info(f"fitting a {options.shots_head} head to {options.shots} images a class")
        judge.normalize = Normalizer(preprocess)
        fit_head(model.to(accelerator.device).eval(), train, preprocess, options, loop.seed, accelerator.device)
    identity = {
        "data": train.sha256(),
        "training": {**options.model_dump(), **augment.model_dump()},
    }
    images: Images | None = None
    used = (time.monotonic() - started) / 60
    stages = [] if options.shots is not None else _stages(options, loop, out / "state", used, resume, preprocess.size)
    try:
        for stage in stages:
            if stage.size != preprocess.size:
                preprocess = preprocess.with_image_size(stage.size)
                config, state = resize_model(model.config, model.state_dict(), stage.size)
                model, images = build_model(config, state), None
            if images is None:
                images = Images(train, preprocess, len(names))
                for file, reason in images.skipped[:5]:
                    reporter.warn(f"left out {file}: {reason}")
                judge = Classification(
                    preprocess,
                    Holdout(val, preprocess, len(names)),
                    accelerator,
                    activation=activation,
                    smoothing=options.smoothing,
                    weights=class_weights(images.targets.sum(0)) if options.reweight else None,
                    teacher=teacher,
                    teacher_weight=options.teacher_weight,
                )
            if log is None and accelerator.is_main_process:
                log = MetricsLog(out, options.tracker)
            # A head that starts from zeros fits nothing yet: its largest losses tell nothing about labels.
            judge.trim = options.wrong_labels if stage.what != "head" or len(stages) == 1 else 0.0
            samples = Samples(
                images,
                augment=make_augment(augment, preprocess),
                mix=make_mix(augment),
                seed=loop.seed,
                weights=balanced(images.targets) if options.balance else None,
            )
            blocks = len(model.config.blocks)
            freeze(model, blocks, stage.what)
            decays = {"layer_decay": stage.options.layer_decay, "weight_decay": stage.options.weight_decay}
            pixels = _pixels(stage.size)
            reporter.info(f"training {stage.what} on {len(images)} images of {len(names)} classes, {pixels} pixels")
            result = fit(
                model,
                judge,
                samples,
                stage.options,
                parameter_groups(model, blocks, **decays),
                accelerator=accelerator,
                state_file=stage.state_file,
                resume=resume,
                identity={**identity, "arch": model.config.to_dict(), "stage": stage.what},
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
    finally:
        if log is not None:
            log.close()
    judged = judge.holdout if test is None else Holdout(test, preprocess, len(names))
    with torch.no_grad():
        tally = judge.tally(model.to(accelerator.device).eval(), judged)
    figures = {
        **tally.figures(),
        "part": "validation" if test is None else "test",
        "images": int(tally.sums[0]),
        "seconds": time.monotonic() - started,
        **(_of_run(result) if result is not None else {"steps": 0, "ended": "fitted in closed form"}),
    }
    if accelerator.is_main_process:
        save_folder(out, model, preprocess, names)
        write_figures(out, figures, tally, names)
    return figures


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}" if size[0] == size[1] else f"{size[0]} x {size[1]}"


def _of_run(result: Fit) -> dict[str, Any]:
    return {
        "validation_score": result.best["score"],
        "best_step": result.best["step"],
        "steps": result.steps,
        "images_seen": result.images,
        "images_per_second": result.images / max(result.seconds, 1e-9),
        "ended": result.ended,
    }


def _stages(
    options: FineTuneOptions, loop: LoopOptions, states: Path, used: float, resume: bool, size: tuple[int, int]
) -> list[_Stage]:
    """The head alone first, then what `options.train` names, at each of the resolutions in turn."""
    sizes = [(side, side) for side in options.image_sizes] or [size]
    minutes = None if loop.minutes is None else max(loop.minutes - used, 0.01)
    head = options.train != "head" and options.head_epochs > 0
    later = states / "main.pt"
    if resume and (later.is_file() or (states / "main-1.pt").is_file()):
        head = False
    share = (1 - HEAD_SHARE if head else 1) / len(sizes)
    main = {"epochs": loop.epochs / len(sizes), "minutes": None if minutes is None else minutes * share}
    stages = [
        _Stage(options.train, size, loop.model_copy(update=main), later.with_stem(f"main-{n}" if n else "main"))
        for n, size in enumerate(sizes)
    ]
    if not head:
        return stages
    # The head starts from zeros: it takes a larger step than what it sits on.
    first = {
        "epochs": options.head_epochs,
        "lr": loop.lr * 10,
        "evaluations": 1,
        "ema": 0.0,
        "patience": None,
        "minutes": None if minutes is None else minutes * HEAD_SHARE,
    }
    return [_Stage("head", sizes[0], loop.model_copy(update=first), states / "head.pt"), *stages]


def _teller(reporter: Reporter) -> Callable[[Row], None]:
    def tell(row: Row) -> None:
        reporter.info("  ".join(f"{key} {value:.4g}" for key, value in row.items()))

    return tell
