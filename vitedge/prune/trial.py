"""Plans tried: carried out in closed form, and judged on images that they were not solved on."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor

from vitedge import metrics
from vitedge.prune.choose import attempt, decide
from vitedge.prune.fit import Fit
from vitedge.prune.measure import RIDGE_IMAGES, Measurement
from vitedge.prune.options import PruneOptions
from vitedge.prune.plan import BlockPlan
from vitedge.prune.recover import Recovery, recover
from vitedge.prune.store import parts, through
from vitedge.prune.surgery import assemble
from vitedge.reporter import Reporter
from vitedge.vit.architecture import Architecture
from vitedge.vit.macs import model_macs

# Images that a plan is tried on and judged by, at most and at least; the work of all trials, in MACs of forward passes,
# of which one takes about six an image.
TRIAL_IMAGES, MIN_TRIAL, TRIAL_MACS, TRIAL_PASSES = 128, 24, 8e12, 6
# What merging may weigh, in shares of what was measured: the errors of many small cuts of widths add up to more.
WEIGHTS = (0.1, 0.3, 1.0)


def choose_plans(
    dense: Architecture, measured: Measurement, start: Tensor, held: Tensor, options: PruneOptions, reporter: Reporter
) -> tuple[list[BlockPlan], float]:
    """The plan whose model, solved in closed form, is nearest to the dense one on images that it was not solved on.

    The harms of single cuts are added up, which holds for tokens and for widths unequally, and what is left makes up
    for them unequally: so plans are made with several weights between the two, and one of tokens alone.
    """
    mixed = any(c.tokens for c in measured.candidates) and options.prune_by == "auto" and options.prune_unit != "params"
    plans, harm = decide(dense.config, measured.candidates, measured.effects, options)
    found = {tuple(plans): harm}
    if mixed and len(held):
        alone = options.model_copy(update={"prune_by": "tokens"})
        for how, weight in ((alone, 1.0), *((options, weight) for weight in WEIGHTS if weight != 1)):
            other = attempt(dense.config, measured.candidates, measured.effects, how, weight)
            if other is not None:
                found.setdefault(tuple(other[0]), other[1])
    if len(found) == 1:
        return plans, harm
    count = round(TRIAL_MACS / (len(found) * TRIAL_PASSES * model_macs(dense.config)))
    count = min(TRIAL_IMAGES, max(MIN_TRIAL, count))
    # The last ones gave the effects, and no closed form.
    judging = torch.cat([held, start[measured.solved :]])[:count]
    divergence = {}
    with reporter.progress("trying plans: blocks", len(found) * len(dense.blocks)) as advance:
        for trial in found:
            small = copy.deepcopy(dense)
            method = "ridge" if options.recover != "none" else "none"
            how = Recovery(method, options.damping, RIDGE_IMAGES, Fit(0, 1, 1e-3), uncut=False)
            tried = start[: min(count, measured.solved)]
            constant = options.merge == "constant"
            recover(dense, small, trial, tried, how, options.seed, lambda n: advance(1), constant=constant)
            divergence[trial] = fidelity(dense, assemble(small), judging)[1] or 0.0
    best = min(divergence, key=divergence.__getitem__)
    return list(best), found[best]


def fidelity(dense: Architecture, small: Architecture, held: Tensor) -> tuple[float | None, float | None]:
    """Agreement and KL divergence (nats) with the dense model, on streams before block 0; None without any."""
    if not len(held):
        return None, None
    expected, found = logits(dense, 0, held), logits(small, 0, held)
    activation = dense.config.activation
    return metrics.agreement(expected, found, activation), metrics.kl(expected, found, activation)


@torch.no_grad()
def logits(model: Architecture, first: int, x: Tensor) -> Tensor:
    """The model's logits [I, classes], from the streams before block `first` [I, N, C] on."""
    for index in range(first, len(model.blocks)):
        x = through(partial(model.run_block, index), x)
    return torch.cat([model.classify(part) for (part,) in parts(x)])
