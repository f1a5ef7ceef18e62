"""What a plan does to the logits, before it is made: the effects of all cuts, measured once, and their allocation.

Loads torch where effects are measured; what plans are made of them needs the pruning's own allocation alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from vitedge.bundle import Bundle
from vitedge.errors import VitedgeError
from vitedge.files import write_json
from vitedge.prune.options import PruneOptions
from vitedge.reporter import Reporter
from vitedge.steps.source import PIXELS, SOURCE, float_batches, need_pixels, read_preprocess
from vitedge.vit.config import Merge, ViTConfig

if TYPE_CHECKING:
    from pathlib import Path

    from vitedge.prune.effects import Effects

FILE = "search/effects.json"


@dataclass(frozen=True)
class Plan:
    """Widths and tokens that pruning would choose, and the KL divergence expected of the logits before any fitting."""

    config: ViTConfig
    harm: float


def measure_effects(bundle: Bundle, options: PruneOptions, reporter: Reporter) -> list[Effects]:
    """The effect of each cut of each block, kept in the run. `bundle` has a model and calibration images."""
    pixels = need_pixels(bundle, "Searching")

    def work(folder: Path) -> dict[str, Any]:
        from vitedge.prune.run import check, measure_cuts
        from vitedge.prune.store import embed_all
        from vitedge.vit.checkpoint import read_model

        model = read_model(bundle.path(SOURCE)).eval().requires_grad_(False)
        check(model, len(pixels), options)
        with reporter.busy(f"measuring on {len(pixels)} images what each cut would do to the logits"):
            start = embed_all(model, float_batches(pixels, read_preprocess(bundle)), 1, options.seed)
            measured = measure_cuts(model, start, options)
        write_json(folder / FILE, {"effects": [asdict(one) for one in measured.effects]})
        return {"images": len(pixels), "solved": measured.solved}

    bundle.run_step(
        "search-effects",
        work,
        options=options.model_dump(),
        inputs=[f"{SOURCE}/model.safetensors", f"{SOURCE}/arch.json", f"{SOURCE}/preprocess.json", PIXELS],
        modules=(__name__,),
    )
    return read_effects(bundle.json(FILE)["effects"])


def read_effects(values: Sequence[dict[str, dict[str, float]]]) -> list[Effects]:
    """The effects in JSON's form: its keys are text."""
    from vitedge.prune.effects import Effects

    return [Effects(**{name: {int(k): v for k, v in table.items()} for name, table in one.items()}) for one in values]


def plan_for(config: ViTConfig, effects: Sequence[Effects], options: PruneOptions) -> Plan | None:
    """The plan that pruning would choose of the dense `config`; None where the constraints don't allow the share."""
    from vitedge.prune.candidates import Candidates
    from vitedge.prune.choose import decide

    # Which units and heads go does not matter here, only how many.
    any_of = [
        Candidates(unit_order=list(range(b.hidden)), heads={n: tuple(range(n)) for n in range(b.heads + 1)})
        for b in config.blocks
    ]
    try:
        plans, harm = decide(config, any_of, effects, options)
    except VitedgeError:
        return None
    matched = options.merge != "constant"
    tokens = config.tokens
    for index, plan in enumerate(plans):
        merge = None
        if plan.left is not None:
            groups = () if matched else tuple(min(n, plan.left - 1) for n in range(tokens))
            merge, tokens = Merge(plan.left, groups, matched), plan.left
        block = replace(config.blocks[index], groups=(), merge=merge)
        block = replace(block, heads=len(plan.heads), qk_dim=plan.qk_dim, v_dim=plan.v_dim, hidden=len(plan.units))
        config = replace(config, blocks=(*config.blocks[:index], block, *config.blocks[index + 1 :]))
    return Plan(config, harm)
