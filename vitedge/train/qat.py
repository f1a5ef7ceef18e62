"""Quantisation-aware training: the float model teaches its quantised form, whose step sizes learn too."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.quant.learned_model import learnable, learned_floats, learned_scheme
from vitedge.quant.scheme import Scheme
from vitedge.reporter import Reporter
from vitedge.train.blockwise import fit_blocks
from vitedge.train.device import is_out_of_memory
from vitedge.train.distil import check_pair
from vitedge.train.loop import make_accelerator
from vitedge.train.options import QatOptions
from vitedge.train.schedule import ParameterGroups
from vitedge.train.stream import Rotated, stream_rotations
from vitedge.train.teaching import TeachingReport, TeachingRun, freeze_after_blocks
from vitedge.vit.architecture import Architecture
from vitedge.vit.names import is_added

# The most that the blocks by themselves take of `--minutes`.
BLOCK_SHARE = 0.4


def train_quantized(
    model: Architecture,
    scheme: Scheme,
    teacher: Architecture,
    pixels: np.ndarray,
    preprocess: Preprocess,
    options: QatOptions,
    progress: Reporter | None = None,
    state_folder: Path | None = None,
) -> tuple[Architecture, Scheme, TeachingReport]:
    """What `scheme` makes of the float `model`, trained on `pixels` uint8 [N, crop, crop, 3] to answer as `teacher`.

    Everything is rounded where the scheme rounds it; gradients go straight through (arXiv 1308.3432), and step sizes
    learn as in LSQ (arXiv 1902.08153). Zero points stay. Each block learns by itself first, then the whole. Some
    images are held out; what is best on them is kept, and that is `scheme` itself where nothing is better.

    Args:
        teacher: the float model before anything that was not exact; its stream may be rotated against `model`'s.
        state_folder: keeps the state of a run, and has that of one that was killed: it goes on as if it had never
            stopped.

    Returns:
        The float model with the integers' weights, the scheme learned, and how it went.

    Raises:
        VitedgeError: too few images, models that are not forms of one, a diverging run or a full memory.
    """
    check_pair(model, teacher)
    rotations = stream_rotations(model, teacher)
    if rotations is None and options.feature_weight:
        raise VitedgeError(
            "The teacher's residual stream is not the model's.",
            "No rotation takes what one embeds to what the other does.",
            "Train with the model that this one was made of, or with qat.logit_weight = 1 and qat.feature_weight = 0.",
        )
    accelerator, started, reporter = make_accelerator(), time.monotonic(), progress or Reporter()
    student = learnable(model, scheme, preprocess, from_float=options.from_float)
    registers = any(block.register for block in model.config.blocks)
    if not rotations:  # nor is there any where LayerNorms write to the stream: it is not turned
        compare = [Rotated(torch.eye(block.width), registers) for block in model.encoder()]
    else:
        compare = [Rotated(rotations[model.config.block_stage(i)], registers) for i in range(len(model.blocks))]
    run = TeachingRun(
        student, teacher, pixels, preprocess, options, compare, accelerator, "training in INT8", state_folder
    )
    # A GPU has the time to train the whole; the streams of all images may not fit into its memory.
    if options.block_steps and rotations is not None and accelerator.device.type == "cpu":
        started -= _fit_blocks(run, compare, preprocess, reporter)
    minutes = None
    if options.minutes is not None:
        minutes = max(0.01, options.minutes - (time.monotonic() - started) / 60)
    groups = learning(student, options)
    if not options.logit_weight:
        freeze_after_blocks(student)
    report = run.teach(groups, reporter, minutes)
    student = student.cpu().eval()
    facts = report.to_dict() | {"options": options.model_dump()}
    facts.pop("history")
    learned = learned_scheme(student, scheme, preprocess, facts)
    return learned_floats(student, model, learned, preprocess), learned, report


def _fit_blocks(run: TeachingRun, compare: Sequence[Rotated], preprocess: Preprocess, reporter: Reporter) -> float:
    """Each block by itself; the student stays as it was where the held-out images say that this did harm.

    Agreement of a hundred images goes up and down by chance: what the loop starts from is chosen by the divergence.
    What this makes before the first block and after the last is the same in a resumed run, and so is not kept.

    Returns:
        Seconds that the blocks took before this run was killed; 0 where it was not.
    """
    student, options = run.student, run.options
    assert isinstance(options, QatOptions)
    first = run.judge()
    reporter.info(f"static: agreement {first['agreement']:.3f}, KL {first['kl']:.4f} on {len(run.held)} images")
    learning(student, options)
    try:
        with reporter.progress("training each block by itself: blocks", len(student.blocks)) as advance:
            earlier = fit_blocks(
                student,
                run.teacher,
                run.samples,
                preprocess,
                compare,
                lambda block: learning(block, options),
                steps=options.block_steps,
                batch=options.batch,
                lr=options.block_lr,
                seconds=math.inf if options.minutes is None else BLOCK_SHARE * 60 * options.minutes,
                seed=options.seed,
                advance=advance,
                state_file=run.state_folder and run.state_folder / "blocks.pt",
                identity=run.identity(),
                reporter=reporter,
            )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise VitedgeError(
            f"Out of memory with {options.batch} images a step and {len(run.samples)} in all.",
            "The blocks' inputs of all images are held in memory.",
            "Lower --calib-size, or qat.batch in the configuration (--config FILE), or set qat.block_steps = 0 there.",
            exit_code=1,
        ) from error
    if run.task.evaluate(student)["kl"] > first["kl"]:
        student.load_state_dict(run.start)
    return earlier


def learning(module: nn.Module, options: QatOptions) -> ParameterGroups:
    """Parameter groups of what learns: matrices and biases, and the factors of the step sizes.

    The rest stays as it is: LayerNorms stay folded, and what is added as the positions is not quantised by itself.
    """
    weights, factors = [], []
    for name, parameter in module.named_parameters():
        if name.endswith(".factor"):
            factors.append(parameter)
        elif "norm" not in name and not is_added(name):
            weights.append(parameter)
        parameter.requires_grad_(False)
    for parameter in [*weights, *factors]:
        parameter.requires_grad_(True)
    return [
        {"params": weights, "scale": 1.0, "weight_decay": options.weight_decay},
        {"params": factors, "scale": options.scale_lr, "weight_decay": 0.0},
    ]
