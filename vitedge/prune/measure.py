"""The dense model measured once: what each cut would do to the logits."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from vitedge.prune.candidates import Candidates, find_candidates
from vitedge.prune.effects import Effects, measure
from vitedge.prune.importance import IMPORTANCES, NEEDS_GRADIENTS
from vitedge.prune.merging import merging_harms, token_candidates
from vitedge.prune.options import PruneOptions
from vitedge.prune.statistics import BlockMoments
from vitedge.prune.store import parts
from vitedge.prune.survey import layers, survey
from vitedge.vit.architecture import Architecture

# Drawn outputs an image, and images of the measurement of the effects; images of the closed forms.
SAMPLES, EFFECT_IMAGES, RIDGE_IMAGES = 2, 96, 384


@dataclass
class Measurement:
    """The dense model measured once: what any share is then chosen from.

    Attributes:
        solved: how many images, from the first on, gave the moments; the effects are of the others.
    """

    moments: list[BlockMoments]
    candidates: list[Candidates]
    effects: list[Effects]
    solved: int


_remembered: ContextVar[OrderedDict[str, Measurement] | None] = ContextVar("remembered", default=None)


@contextmanager
def remembered() -> Iterator[None]:
    """Within it, one model is measured once on the same images with the same options: for whoever prunes it to many
    shares. The two latest measurements are held; one of a large model takes gigabytes."""
    token = _remembered.set(OrderedDict())
    try:
        yield
    finally:
        _remembered.reset(token)


def measure_cuts(model: Architecture, start: Tensor, options: PruneOptions) -> Measurement:
    """All candidates of all blocks, and the effect of each on the logits.

    Three quarters of the images give the moments, the others the effects: a closed form looks too good on
    what it was solved on.
    """
    known = _remembered.get()
    if known is None:
        return _measure(model, start, options)
    key = _identity(model, start, options)
    if key not in known:
        while len(known) > 1:
            known.popitem(last=False)
        known[key] = _measure(model, start, options)
    known.move_to_end(key)
    return known[key]


def _identity(model: Architecture, start: Tensor, options: PruneOptions) -> str:
    """A digest of all that a measurement depends on."""
    digest = hashlib.sha256(repr(model.config).encode())
    for tensor in (*model.state_dict().values(), start):
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    # Which share is asked for, in which unit, and how it is recovered, is decided later.
    own = {"align", "head_align", "min_heads", "min_hidden", "importance", "damping", "merge", "seed"}
    digest.update(options.model_dump_json(include=own).encode() + bytes([options.prune_by == "widths"]))
    return digest.hexdigest()


def _measure(model: Architecture, start: Tensor, options: PruneOptions) -> Measurement:
    generator = torch.Generator().manual_seed(options.seed)
    cut = max(1, len(start) - min(EFFECT_IMAGES, max(1, len(start) // 4)))
    solved, tried = start[:cut][:RIDGE_IMAGES], start[cut:]
    moments = survey(model, solved, distances=options.merge == "constant" and options.prune_by != "widths")
    gradients = options.importance in NEEDS_GRADIENTS
    score = IMPORTANCES[options.importance]
    candidates = []
    for block, stats, own in zip(
        model.encoder(), moments, layers(model, tried, moments, gradients, generator), strict=True
    ):
        candidates.append(
            find_candidates(
                block,
                stats,
                align=options.align,
                head_align=options.head_align,
                min_hidden=options.min_hidden,
                min_heads=options.min_heads,
                damping=options.damping,
                unit_scores=score(own["units"]) if "units" in own else None,
                head_scores=score(own["heads"]) if "heads" in own else None,
            )
        )
    fresh = not model.config.unmergeable and not any(block.merge for block in model.encoder())
    if fresh and options.prune_by != "widths":
        for block, stats, found in zip(model.encoder(), moments, candidates, strict=True):
            if block.queries is None:
                found.tokens = token_candidates(stats, model.config, constant=options.merge == "constant")
    means = [stats.means() for stats in moments]
    small = (p for (whole,) in parts(tried) for p in whole.split(8))
    effects = measure(model, small, candidates, means, samples=SAMPLES, generator=generator)
    if any(found.tokens for found in candidates):
        for effect, harms in zip(effects, merging_harms(model, tried, candidates), strict=True):
            effect.tokens = harms
    return Measurement(moments, candidates, effects, cut)
