"""`vitedge analyze`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitedge.bundle import DEFAULT_RUN, Bundle
from vitedge.cli.console import ConsoleReporter, print_json, print_table
from vitedge.files import write_json
from vitedge.tables import Table, to_json

if TYPE_CHECKING:
    from vitedge.quant.analysis import LayerError

ANALYSIS = "analysis/50-layer-error.json"
MODEL, QUANT = "model", "quant"


def command(
    run: Annotated[Path, typer.Option("--run", help="Run folder, made by vitedge compress.")] = Path(DEFAULT_RUN),
    images: Annotated[int, typer.Option("--images", help="Calibration images used.", min=1)] = 16,
    top: Annotated[int, typer.Option("--top", help="Rows shown; 0 for all.", min=0)] = 25,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Shows the error of each quantised tensor, worst first, and what to do about it.

    SQNR and cosine: the activation itself, with everything before it in INT8. Alone: SQNR and KL divergence of the
    logits with that tensor alone in INT8. Simulated in PyTorch on the calibration images.
    """
    from vitedge.quant.analysis import layer_errors
    from vitedge.quant.scheme import Scheme
    from vitedge.steps.source import float_batches, need_pixels, read_preprocess
    from vitedge.vit.checkpoint import read_model

    bundle = Bundle.open(run)
    scheme = Scheme.load(bundle.path(QUANT))
    pixels = need_pixels(bundle, "Analysing")[:images]
    preprocess = read_preprocess(bundle)
    model = read_model(bundle.path(MODEL))
    total = len(scheme.activations) - 1 + len(model.linears())
    with ConsoleReporter().progress("layer errors", total) as advance:
        rows = layer_errors(
            model,
            scheme,
            float_batches(pixels, preprocess)(),
            preprocess,
            images,
            lambda name: advance(1),
        )
    table = as_table(rows, len(pixels))
    write_json(bundle.path(ANALYSIS), to_json(table))
    if json:
        print_json([asdict(row) for row in rows])
        return
    print_table(replace(table, rows=table.rows[: top or None]))


def as_table(rows: list[LayerError], images: int) -> Table:
    """The rows as the console and the report show them."""
    columns = ["tensor", "kind", "SQNR (dB)", "cosine", "alone (dB)", "alone, KL (nats)", "advice"]
    return Table(
        "Quantisation error, worst first",
        columns,
        [[r.name, r.kind, r.sqnr_db, r.cosine, r.single_db, r.divergence, r.advice or None] for r in rows],
        note=f"Simulated in PyTorch on {images} calibration images, against the float model before quantisation.",
        step="analyze",
        bars=["alone, KL (nats)"],
        decimals={"SQNR (dB)": 1, "alone (dB)": 1, "cosine": 5},
    )
