"""The step that conditions: exact transforms after which any compiler can quantise the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitedge.bundle import Bundle
from vitedge.condition import ConditionOptions
from vitedge.condition.transform import added_code
from vitedge.reporter import Reporter
from vitedge.steps.source import float_batches, need_pixels, read_preprocess
from vitedge.steps.transform import Outcome, Transformed, transform_model
from vitedge.tables import Table

if TYPE_CHECKING:
    from vitedge.vit.architecture import Architecture


def condition_model(bundle: Bundle, parent: str, options: ConditionOptions, reporter: Reporter) -> Transformed:
    """Exact float transforms (and, where a budget is given, the near-exact one) on the model in `parent`."""
    pixels = need_pixels(bundle, "Conditioning")

    def apply(model: Architecture, _kept: Path) -> Outcome:
        from vitedge.condition import condition

        with reporter.busy(f"conditioning on {len(pixels)} images"):
            conditioned, report = condition(model, float_batches(pixels, read_preprocess(bundle)), options)
        return Outcome(conditioned, report.to_dict(), [condition_table(report.to_dict())])

    asked = options.model_dump()
    if added := added_code():
        asked["transforms"] = added
    record = transform_model(
        bundle, "condition", parent, apply, options=asked, modules=("vitedge.steps.condition",), order=20
    )
    changed = any(not step["exact"] for step in record.facts["steps"])
    return Transformed("steps/condition", changed, record)


def condition_table(report: Mapping[str, Any]) -> Table:
    """One row a transform: what it did to the ranges of each kind of activation, and to the logits."""
    kinds = sorted({kind for step in report["steps"] for kind in step["crest"]})
    rows = []
    for step in report["steps"]:
        crests = [" -> ".join(f"{v:.1f}" for v in step["crest"][k]) if k in step["crest"] else None for k in kinds]
        rows.append([step["name"], step["exact"], step["logit_difference"], step["agreement"], *crests])
    return Table(
        "Conditioning: largest absmax over standard deviation, before and after",
        ["transform", "exact", "logit difference", "agreement", *kinds],
        rows,
        "Logit difference: the largest on calibration images, as a share of the logits' range, against the step "
        "before; agreement: with the float model before conditioning.",
    )
