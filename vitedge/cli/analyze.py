"""`vitedge analyze`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitedge.bundle import DEFAULT_RUN, Bundle
from vitedge.cli.console import ConsoleReporter, print_json, print_table
from vitedge.files import write_json

if TYPE_CHECKING:
    from vitedge.quant.analysis import LayerError

ANALYSIS = "analysis/50-layer-error.json"
MODEL, QUANT = "model", "quant"
_BAR, _BAR_DB = 30, 60.0


def command(
    run: Annotated[Path, typer.Option("--run", help="Run folder, made by vitedge compress.")] = Path(DEFAULT_RUN),
    images: Annotated[int, typer.Option("--images", help="Calibration images used.", min=1)] = 16,
    top: Annotated[int, typer.Option("--top", help="Rows shown; 0 for all.", min=0)] = 25,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Shows the error of each quantised tensor, worst first, and what to do about it.

    sqnr_db and cosine: the activation itself, with everything before it in INT8. alone_db: SQNR of the logits
    with that tensor alone in INT8. Simulated in PyTorch on the calibration images.
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
    write_json(bundle.path(ANALYSIS), {"tables": [table]})
    if json:
        print_json([asdict(row) for row in rows])
        return
    shown = drawn(table)[: top or None]
    print_table(table["title"], [*table["columns"], ""], shown, table["note"])


def as_table(rows: list[LayerError], images: int) -> dict[str, Any]:
    """The rows as `vitedge.report` takes a table."""
    return {
        "title": "Quantisation error, worst first",
        "columns": ["tensor", "kind", "sqnr_db", "cosine", "alone_db", "divergence", "what to do"],
        "rows": [
            [
                row.name,
                row.kind,
                None if row.sqnr_db is None else round(row.sqnr_db, 1),
                None if row.cosine is None else round(row.cosine, 5),
                round(row.single_db, 1),
                float(f"{row.divergence:.3g}"),
                row.advice,
            ]
            for row in rows
        ],
        "bars": ["alone_db"],
        "note": f"Simulated in PyTorch on {images} calibration images.",
        "step": "analyze",
    }


def drawn(table: dict[str, Any]) -> list[list[Any]]:
    """The rows, each with a bar that is the longer the more the tensor costs."""
    at = table["columns"].index("alone_db")
    return [[*row, "#" * max(0, round(_BAR * (1 - row[at] / _BAR_DB)))] for row in table["rows"]]
