"""Plans tried: carried out in closed form, and judged on images that they were not solved on."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from vitedge import metrics
from vitedge.prune.choose import attempt, decide
from vitedge.prune.fit import Fit
from vitedge.prune.measure import RIDGE_IMAGES, Measurement
from vitedge.prune.options import PruneOptions
from vitedge.prune.plan import BlockPlan
from vitedge.prune.recover import Recovery, recover
from vitedge.prune.spread import spread_plans
from vitedge.prune.store import logits
from vitedge.prune.surgery import assemble
from vitedge.reporter import Reporter
from vitedge.vit.architecture import Architecture
from vitedge.vit.config import ViTConfig
from vitedge.vit.macs import model_macs

# Images that a plan is tried on and judged by, at most and at least; the work of all trials, in MACs of forward passes,
# of which one takes about six an image.
TRIAL_IMAGES, MIN_TRIAL, TRIAL_MACS, TRIAL_PASSES = 128, 24, 4e12, 6
# What the harm of merging may weigh beside that of widths: single cuts of the two add up unequally.
WEIGHTS = (0.3, 0.5, 1.0)


@dataclass(frozen=True)
class Chosen:
    """Attributes: plans: one a block. harm: what was expected of the cuts alone (KL, nats). uncut: see `Recovery`."""

    plans: list[BlockPlan]
    harm: float
    uncut: bool = False


def choose_plans(
    dense: Architecture, measured: Measurement, start: Tensor, held: Tensor, options: PruneOptions, reporter: Reporter
) -> Chosen:
    """The plan whose model, solved in closed form, is nearest to the dense one on images that it was not solved on.

    The harms of single cuts are added up, which holds for tokens and for widths unequally, and what is left makes up
    for them unequally: so plans are made with several weights between the two, and some of tokens alone. Where little
    was lost, solving layers anew that the plan leaves as they are does more harm than good; where much was, they make
    up for it: the best plan is tried both ways.
    """
    found = plans_of(dense.config, measured, options, mixed=bool(len(held)))
    solves = options.recover != "none" and len(held) > 0
    if len(found) == 1 and not solves:
        return Chosen(list(next(iter(found))), next(iter(found.values())))
    trials = len(found) + solves
    count = round(TRIAL_MACS / (trials * TRIAL_PASSES * model_macs(dense.config)))
    count = min(TRIAL_IMAGES, max(MIN_TRIAL, count))
    # The last ones gave the effects, and no closed form.
    judging, solving = torch.cat([held, start[measured.solved :]])[:count], start[: min(count, measured.solved)]
    expected = logits(dense, 0, judging)
    with reporter.progress("trying plans: blocks", trials * len(dense.blocks)) as advance:

        def divergence(plans: tuple[BlockPlan, ...], uncut: bool) -> float:
            small, method = copy.deepcopy(dense), "ridge" if options.recover != "none" else "none"
            how = Recovery(method, options.damping, RIDGE_IMAGES, Fit(0, 1, 1e-3), uncut=uncut)
            constant = options.merge == "constant"
            recover(dense, small, plans, solving, how, options.seed, lambda n: advance(1), constant=constant)
            return fidelity(expected, assemble(small), judging)[1] or 0.0

        tried = {plans: divergence(plans, False) for plans in found}
        best = min(tried, key=tried.__getitem__)
        uncut = solves and divergence(best, True) < tried[best]
    return Chosen(list(best), found[best], uncut)


def plans_of(
    config: ViTConfig, measured: Measurement, options: PruneOptions, *, mixed: bool
) -> dict[tuple[BlockPlan, ...], float]:
    """Plans that save the share, and the harm expected of each; one alone unless `mixed`, and without tokens."""
    plans, harm = decide(config, measured.candidates, measured.effects, options)
    found = {tuple(plans): harm}
    if mixed and options.prune_by == "auto" and options.prune_unit != "params":
        ways = [(options, weight) for weight in WEIGHTS if weight != 1]
        ways.append((options.model_copy(update={"prune_by": "tokens"}), 1.0))
        if any(c.tokens for c in measured.candidates):
            others = [attempt(config, measured.candidates, measured.effects, how, weight) for how, weight in ways]
            for other in (*others, *spread_plans(config, measured.effects, options)):
                if other is not None:
                    found.setdefault(tuple(other[0]), other[1])
    return found


def fidelity(expected: Tensor, small: Architecture, held: Tensor) -> tuple[float | None, float | None]:
    """Agreement and KL divergence (nats) with the dense model's logits, on streams before block 0; None without any."""
    if not len(held):
        return None, None
    found, activation = logits(small, 0, held), small.config.activation
    return metrics.agreement(expected, found, activation), metrics.kl(expected, found, activation)
