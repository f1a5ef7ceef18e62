"""The step that measures where quantisation loses, for `vitedge analyze` and the report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from vitedge import documents
from vitedge.bundle import Bundle
from vitedge.errors import VitedgeError
from vitedge.files import write_json
from vitedge.manifest import Facts
from vitedge.quant.scheme import ARRAYS_NAME, JSON_NAME, Scheme
from vitedge.reporter import Reporter
from vitedge.steps.model import FINAL
from vitedge.steps.quantize import QUANT
from vitedge.steps.source import PIXELS, float_batches, need_pixels, read_preprocess
from vitedge.tables import Table, to_json

if TYPE_CHECKING:
    from vitedge.quant.analysis import LayerError

FILE = "analysis/50-layer-error.json"


def analyze_run(bundle: Bundle, images: int, reporter: Reporter) -> list[LayerError]:
    """Each quantised tensor's error on calibration images, worst first; kept in the run.

    Raises VitedgeError where the run is not quantised, or has no images.
    """
    if not bundle.has(f"{QUANT}/{JSON_NAME}"):
        raise VitedgeError(
            f"The run '{bundle.root}' is not quantised.", "", "Run `vitedge compress --quantize static` first."
        )
    pixels = need_pixels(bundle, "Analysing")[:images]

    def work(folder: Path) -> Facts:
        from vitedge.quant.analysis import layer_errors
        from vitedge.vit.checkpoint import read_model

        scheme, preprocess = Scheme.load(bundle.path(QUANT)), read_preprocess(bundle)
        model = read_model(bundle.path(FINAL))
        total = len(scheme.activations) - 1 + len(model.linears())
        with reporter.progress("errors of tensors", total) as advance:
            batches = float_batches(pixels, preprocess)()
            rows = layer_errors(model, scheme, batches, preprocess, images, lambda name: advance(1))
        tables = to_json(error_table(rows, len(pixels)))
        write_json(folder / FILE, tables | {"rows": [asdict(row) for row in rows]})
        return {"images": len(pixels)}

    bundle.run_step(
        "analyze",
        work,
        options={"images": len(pixels)},
        inputs=[f"{FINAL}/model.safetensors", f"{FINAL}/arch.json", "source/preprocess.json", PIXELS]
        + [f"{QUANT}/{name}" for name in (JSON_NAME, ARRAYS_NAME)],
        modules=(__name__,),
    )
    from vitedge.quant.analysis import LayerError

    kept = documents.parse_json(bundle.read(FILE), FILE)
    return TypeAdapter(list[LayerError]).validate_python(kept["rows"])


def error_table(rows: list[LayerError], images: int) -> Table:
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
