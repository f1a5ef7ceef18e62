"""Pruning from the beginning to the end."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vitedge.documents import Json
from vitedge.errors import VitedgeError
from vitedge.prune.choose import count
from vitedge.prune.fit import Fit
from vitedge.prune.hardware import aligned_for_target
from vitedge.prune.measure import RIDGE_IMAGES, measure_cuts
from vitedge.prune.merging import with_groups
from vitedge.prune.options import PruneOptions
from vitedge.prune.plan import everything
from vitedge.prune.recover import Errors, Recovery, recover
from vitedge.prune.result import LayerChange, PruneReport
from vitedge.prune.sparse import sparse_layers, sparsify_model
from vitedge.prune.store import embed_all, logits
from vitedge.prune.surgery import assemble
from vitedge.prune.trial import Chosen, choose_plans, fidelity
from vitedge.reporter import Reporter, scaled
from vitedge.vit.architecture import Architecture
from vitedge.vit.config import ViTConfig
from vitedge.vit.macs import block_macs, model_macs, model_params

Batches = Callable[[], Iterator[Tensor]]
# Images that are held out, at most.
HELD_OUT = 64
# Images that constant groups are chosen on.
GROUP_IMAGES = 256
# The work of the gradient steps a block, in MACs of forward passes through it.
FIT_MACS, MIN_STEPS, MAX_STEPS = 1.2e12, 24, 150


def check(model: Architecture, images: int, options: PruneOptions) -> None:
    """Raises VitedgeError where the options and the model, or the images, don't fit."""
    config = model.config
    if options.prune_by == "tokens" and config.unmergeable:
        raise VitedgeError(
            "This model's tokens can't be merged.", config.unmergeable, "Prune widths alone: --prune-by widths."
        )
    widest = max((b.hidden for b in config.blocks), default=0)
    if widest and options.align > widest:
        raise VitedgeError(
            f"An alignment of {options.align} is more than any layer has units.",
            f"The widest MLP has {widest} units.",
            f"Give at most --align {widest}.",
        )
    fewest, why = fewest_images(config)
    if images < fewest:
        raise VitedgeError(
            f"{images} calibration images are too few to prune this model.",
            why,
            f"Give at least {fewest} images; some hundred are better.",
        )


def fewest_images(config: ViTConfig) -> tuple[int, str]:
    """How many images the closed forms need at least, and why: as many tokens as a layer has inputs."""
    sizes = [
        (max(block.hidden, block.heads * block.v_dim), math.prod(config.block_grid(i)) + config.prefix)
        for i, block in enumerate(config.blocks)
    ]
    wide, tokens = max(sizes, key=lambda size: size[0] / size[1])
    why = f"Its widest layer has {wide} inputs, and an image gives {tokens} tokens."
    return max(16, math.ceil(wide / tokens)), why


def default_steps(config: ViTConfig, batch: int) -> int:
    """Gradient steps a block, so that models of all sizes take about the same time."""
    blocks = [block_macs(config, i) for i in range(len(config.blocks))]
    return min(MAX_STEPS, max(MIN_STEPS, round(FIT_MACS / (3 * batch * max(blocks)))))


def run(
    model: Architecture, batches: Batches, options: PruneOptions, progress: Reporter | None = None
) -> tuple[Architecture, PruneReport]:
    """See `vitedge.prune.prune`."""
    reporter = progress or Reporter()
    options = aligned_for_target(options)
    clock = Clock()
    dense = copy.deepcopy(model).eval().requires_grad_(False)
    images = sum(len(x) for x in batches())
    check(dense, images, options)
    steps = default_steps(dense.config, options.fit_batch) if options.fit_steps is None else options.fit_steps
    if options.recover != "block" or not options.prune:
        steps = 0
    fit = Fit(steps, options.fit_batch, options.fit_lr)
    views = options.fit_views or min(2, max(1, fit.steps * fit.batch // images))  # a second one if each is seen twice
    start = embed_all(dense, batches, views, options.seed)
    own = images - held_images(images)
    held, start = start[own:images], torch.cat([view[:own] for view in start.split(images)])
    clock.lap("embed")

    chosen = Chosen([everything(b) for b in dense.config.blocks], 0.0)
    constant = options.merge == "constant"
    if options.prune:
        with reporter.busy(f"measuring on {own} images what each cut would do to the logits"):
            measured = measure_cuts(dense, start[:own], options)
        chosen = choose_plans(dense, measured, start[:own], held, options, reporter)
        del measured  # gigabytes, for a large model
    clock.lap("choose")

    pruned, plans = copy.deepcopy(dense), chosen.plans
    how = Recovery(options.recover if options.prune else "none", options.damping, RIDGE_IMAGES, fit, chosen.uncut)
    work = len(plans) * (len(start) + 3 * fit.steps * fit.batch)
    with reporter.progress(f"fitting {len(plans)} blocks to the dense model: images", images) as advance:
        told = scaled(advance, work, images)
        errors = recover(dense, pruned, plans, start, how, options.seed, told, constant=constant)
    clock.lap("recover")
    sparsity = 0.0
    if options.sparsity:
        with reporter.progress("setting weights to zero: images", images) as advance:
            told = scaled(advance, len(plans) * own, images)
            sparsity = sparsify_model(pruned, start[:own], options.sparsity, advance=told)
        clock.lap("sparsity")
    small = assemble(pruned)
    if not constant:
        small = with_groups(small, start[:GROUP_IMAGES])
    agreement, kl = fidelity(logits(dense, 0, held), small, held)
    facts = report(dense.config, small, options, chosen.harm, errors, fit, own, views, clock.seconds)
    return small, replace(facts, sparsity=sparsity, held_out=len(held), agreement=agreement, kl=kl)


def held_images(images: int) -> int:
    """How many images are left out of all that is measured, solved and fitted."""
    return min(HELD_OUT, images // 8)


def sparsify(
    model: Architecture, batches: Batches, options: PruneOptions, progress: Reporter | None = None
) -> tuple[Architecture, Json]:
    """A copy of `model` with the zeros that `options.sparsity` asks for, recovered block by block as pruning is (but
    for `recover` "none" and "ridge"), and how many. It comes after conditioning, whose rotation would fill them.

    Facts: the pattern, the share of zeros, and the names of the Linears that have them.
    """
    assert options.sparsity is not None
    reporter = progress or Reporter()
    sparse = copy.deepcopy(model).eval().requires_grad_(False)
    images = sum(len(x) for x in batches())
    check(sparse, images, options)
    steps = default_steps(sparse.config, options.fit_batch) if options.fit_steps is None else options.fit_steps
    fit = Fit(steps, options.fit_batch, options.fit_lr) if options.recover in ("block", "distill") else None
    # More views by themselves bring 2:4 nothing: ViT-Ti/16 with 768 images kept 0.776 of its classes, with three
    # views of them 0.768.
    start = embed_all(sparse, batches, options.fit_views or 1, options.seed)
    work = len(sparse.blocks) * (len(start) + (3 * fit.steps * fit.batch if fit else 0))
    with reporter.progress("sparsifying: images through a block", work) as advance:
        share = sparsify_model(sparse, start, options.sparsity, fit, options.seed, advance)
    chosen = {id(layer) for b in sparse.encoder() for _, group in sparse_layers(b, options.sparsity) for layer in group}
    layers = [name for name, layer in sparse.linears().items() if id(layer) in chosen]
    return sparse, {"pattern": options.sparsity, "zeros": share, "layers": layers}


class Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self.last, 2)
        self.last = now


def report(
    before: ViTConfig,
    small: Architecture,
    options: PruneOptions,
    predicted: float,
    errors: Sequence[Errors],
    fit: Fit,
    images: int,
    views: int,
    seconds: dict[str, float],
) -> PruneReport:
    """The facts of a run."""
    after = small.config
    counted = count(before, options)
    changes = tuple(
        LayerChange(
            i,
            (before.block_tokens(i).mlp, after.block_tokens(i).mlp),
            (a.heads, b.heads),
            (a.qk_dim, b.qk_dim),
            (a.v_dim, b.v_dim),
            (a.hidden, b.hidden),
            e.cut,
            e.fitted,
        )
        for i, (a, b, e) in enumerate(zip(before.blocks, after.blocks, errors, strict=True))
    )
    return PruneReport(
        unit=options.prune_unit,
        asked=options.prune or 0.0,
        removed=1 - counted(after) / counted(before),
        macs=(model_macs(before), model_macs(after)),
        params=(model_params(before), model_params(after)),
        predicted_kl=predicted,
        layers=changes,
        sparsity=0.0,
        images=images,
        views=views,
        steps=fit.steps,
        batch=fit.batch,
        seconds=seconds,
    )
