"""The steps that turn a float model into another one: each reads a folder of the bundle and writes its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitedge.bundle import Bundle, StepRecord
from vitedge.files import write_json
from vitedge.manifest import Facts
from vitedge.reporter import Reporter
from vitedge.steps.source import PIXELS, SOURCE
from vitedge.tables import Table, to_json

if TYPE_CHECKING:
    from vitedge.quant.scheme import Scheme
    from vitedge.vit.architecture import Architecture


TRAINED = "steps/qat"


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
    facts: Facts
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
    modules: tuple[str, ...],
    order: int,
    also: tuple[str, ...] = (),
) -> StepRecord:
    """Runs `apply` on the model in `parent` and keeps the result in `steps/<name>/`.

    apply: its second argument is a folder for the state of a training that may be killed (see `Bundle.run_step`).
    modules: the step's own modules (see `Bundle.run_step`). order: place of its table in the report.
    also: further files of the bundle that it reads.
    """

    def work(folder: Path, kept: Path) -> Facts:
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
        modules=modules,
        resumes=True,
    )


def tell_fresh_start(what: str, kept: Path, reporter: Reporter) -> None:
    """Says so where a killed training left a state that this one can't go on from."""
    if not kept.exists() and kept.parent.exists():
        reporter.info(f"{what} starts from its beginning: what was interrupted had other options or another input")


def before_conditioning(bundle: Bundle, model: str) -> str:
    """The folder of the model that conditioning started from; `model` where there was no conditioning, or where zeros
    were made after it, whose price is not that of INT8."""
    if bundle.manifest.steps.get("sparsify"):
        return model
    step = bundle.manifest.steps.get("condition")
    read = step.inputs if step else {}
    return next((p.rpartition("/")[0] for p in read if p.endswith("/model.safetensors")), model)
