"""The steps that turn a float model into another one: each reads a folder of the bundle and writes its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitedge.bundle import Bundle, StepRecord, code_version
from vitedge.condition import ConditionOptions
from vitedge.data.sample import held_out
from vitedge.files import write_json
from vitedge.prune import PruneOptions
from vitedge.reporter import Reporter
from vitedge.steps.source import PIXELS, SOURCE, float_batches, need_pixels, read_preprocess
from vitedge.tables import Table, to_json
from vitedge.train.options import DistilOptions

if TYPE_CHECKING:
    from vitedge.quant.scheme import Scheme
    from vitedge.vit.architecture import Architecture


@dataclass(frozen=True)
class Transformed:
    """Where the new model is, and whether it computes something else than the one before."""

    folder: str
    function_changed: bool
    record: StepRecord


@dataclass(frozen=True)
class Outcome:
    """What a transform gives back: the model, facts for the manifest, tables for the report; with training the rows of
    `metrics.csv`, with training in INT8 the scheme too."""

    model: Architecture
    facts: dict[str, Any]
    tables: list[Table]
    history: list[dict[str, float]] | None = None
    scheme: Scheme | None = None


def transform_model(
    bundle: Bundle,
    name: str,
    parent: str,
    apply: Callable[[Architecture, Path], Outcome],
    *,
    options: Mapping[str, Any],
    rooms: tuple[str, ...],
    order: int,
    also: tuple[str, ...] = (),
) -> StepRecord:
    """Runs `apply` on the model in `parent` and keeps the result in `steps/<name>/`.

    apply: its second argument is a folder for the state of a training that may be killed (see `Bundle.run_step`).
    rooms: packages whose sources make the result. order: place of its table in the report.
    also: further files of the bundle that it reads.
    """

    def work(folder: Path, kept: Path) -> dict[str, Any]:
        from vitedge.vit.checkpoint import read_model, save_model

        outcome = apply(read_model(bundle.path(parent)), kept)
        save_model(folder / "steps" / name, outcome.model)
        if outcome.history:
            from vitedge.train.metrics import write_history

            write_history(folder / "steps" / name, outcome.history)
        if outcome.scheme is not None:
            outcome.scheme.save(folder / "steps" / name)
        write_json(folder / "analysis" / f"{order}-{name}.json", to_json(*outcome.tables, step=name))
        return outcome.facts

    return bundle.run_step(
        name,
        work,
        options=options,
        inputs=[f"{parent}/model.safetensors", f"{parent}/arch.json", f"{SOURCE}/preprocess.json", PIXELS, *also],
        code=code_version("vitedge.vit.model", *rooms),
        resumes=True,
    )


def tell_fresh_start(what: str, kept: Path, reporter: Reporter) -> None:
    """Says so where a killed training left a state that this one can't go on from."""
    if not kept.exists() and kept.parent.exists():
        reporter.info(f"{what} starts from its beginning: what was interrupted had other options or another input")


def prune_model(
    bundle: Bundle, parent: str, options: PruneOptions, distil: DistilOptions, reporter: Reporter
) -> Transformed:
    """A smaller model (or one with zeros, where only sparsity is asked for) out of the model in `parent`."""
    chosen = options.model_dump()
    if options.recover == "distill":
        chosen |= {"held_out": [distil.holdout, distil.seed]}
    pixels, own = pruning_sees(need_pixels(bundle, "Pruning"), options, distil)

    def apply(model: Architecture, _kept: Path) -> Outcome:
        from vitedge.prune import prune

        small, report = prune(model, float_batches(pixels, read_preprocess(bundle)), own, reporter)
        return Outcome(small, report.to_dict(), report.tables())

    record = transform_model(
        bundle, "prune", parent, apply, options=chosen, rooms=("vitedge.prune",), order=10
    )
    return Transformed("steps/prune", True, record)


def pruning_sees(
    pixels: np.ndarray, options: PruneOptions, distil: DistilOptions
) -> tuple[np.ndarray, PruneOptions]:
    """The images and options that pruning itself gets where distillation follows.

    What distillation is going to be judged on is left alone: a model looks too good on what it was fitted to.
    """
    if options.recover != "distill":
        return pixels, options
    _, rest = held_out(len(pixels), distil.holdout, distil.seed)
    return pixels[np.sort(rest)], options.model_copy(update={"recover": "block"})


def distil_model(bundle: Bundle, parent: str, options: DistilOptions, reporter: Reporter) -> Transformed:
    """The pruned model in `parent`, taught by the dense source on the calibration images."""
    pixels = need_pixels(bundle, "Distillation")

    def apply(model: Architecture, kept: Path) -> Outcome:
        from vitedge.train.distil import distill
        from vitedge.vit.checkpoint import read_model

        tell_fresh_start("distillation", kept, reporter)
        teacher = read_model(bundle.path(SOURCE))
        student, report = distill(model, teacher, pixels, read_preprocess(bundle), options, reporter, kept)
        return Outcome(student, report.to_dict(), report.tables("Distillation"), report.history)

    record = transform_model(
        bundle,
        "distill",
        parent,
        apply,
        options=options.model_dump(),
        rooms=("vitedge.train",),
        order=15,
        also=(f"{SOURCE}/model.safetensors",),
    )
    return Transformed("steps/distill", True, record)


def condition_model(bundle: Bundle, parent: str, options: ConditionOptions, reporter: Reporter) -> Transformed:
    """Exact float transforms (and, where a budget is given, the near-exact one) on the model in `parent`."""
    pixels = need_pixels(bundle, "Conditioning")

    def apply(model: Architecture, _kept: Path) -> Outcome:
        from vitedge.condition import condition

        reporter.info(f"conditioning on {len(pixels)} images")
        conditioned, report = condition(model, float_batches(pixels, read_preprocess(bundle)), options)
        return Outcome(conditioned, report.to_dict(), [condition_table(report.to_dict())])

    record = transform_model(
        bundle, "condition", parent, apply, options=options.model_dump(), rooms=("vitedge.condition",), order=20
    )
    changed = any(not step["exact"] for step in record.facts["steps"])
    return Transformed("steps/condition", changed, record)


def before_conditioning(bundle: Bundle, model: str) -> str:
    """The folder of the model that conditioning started from; `model` where there was no conditioning."""
    read = bundle.manifest["steps"].get("condition", {}).get("inputs", {})
    return next((p.rpartition("/")[0] for p in read if p.endswith("/model.safetensors")), model)


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
