"""The step that makes zeros: in the conditioned model, whose rotation would fill them again, and kept from there on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitedge.bundle import Bundle
from vitedge.prune import PruneOptions
from vitedge.reporter import Reporter
from vitedge.steps.source import float_batches, need_pixels, read_preprocess
from vitedge.steps.transform import Outcome, Transformed, transform_model
from vitedge.tables import Table

if TYPE_CHECKING:
    from vitedge.vit.architecture import Architecture

NAME = "sparsify"


def sparsify_model(bundle: Bundle, parent: str, options: PruneOptions, reporter: Reporter) -> Transformed:
    """The model in `parent` with the zeros that `options.sparsity` asks for."""
    pixels = need_pixels(bundle, "Sparsity")

    def apply(model: Architecture, _kept: Path) -> Outcome:
        from vitedge.prune.run import sparsify

        sparse, facts = sparsify(model, float_batches(pixels, read_preprocess(bundle)), options, reporter)
        rows = [["pattern", facts["pattern"]], ["share of zeros", facts["zeros"]], ["Linears", len(facts["layers"])]]
        return Outcome(sparse, facts, [Table("Sparsity", ["what", "value"], rows)])

    read = {"sparsity", "recover", "fit_steps", "fit_batch", "fit_lr", "fit_views", "seed"}
    chosen = options.model_dump(include=read)
    modules = ("vitedge.steps.sparsify",)
    record = transform_model(bundle, NAME, parent, apply, options=chosen, modules=modules, order=22)
    return Transformed(f"steps/{NAME}", True, record)
