"""The step that measures what pruning would cost, for `vitedge sensitivity` and the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitedge import documents
from vitedge.bench.stats import wilson
from vitedge.bundle import Bundle
from vitedge.files import write_json
from vitedge.manifest import Facts
from vitedge.prune.options import PruneOptions
from vitedge.reporter import Reporter
from vitedge.steps.source import PIXELS, SOURCE, float_batches, need_pixels, read_preprocess
from vitedge.tables import Cell, Table, read_tables, to_json

if TYPE_CHECKING:
    from vitedge.prune.sensitivity import Point, Sensitivity

FILE = "analysis/25-sensitivity.json"


@dataclass(frozen=True)
class SensitivityResult:
    """What was measured, as JSON holds it (`points`, `solved_on`, `measured_on`), and its tables."""

    found: Facts
    tables: list[Table]

    def to_dict(self) -> Facts:
        """As JSON holds it."""
        return self.found


def sensitivity_of_run(
    bundle: Bundle, options: PruneOptions, shares: list[float], images: int, reporter: Reporter
) -> SensitivityResult:
    """Agreement against the share removed, of the whole and of each layer alone; kept in the run.

    Raises VitedgeError where the run has too few images.
    """
    pixels = need_pixels(bundle, "Measuring the sensitivity")[:images]

    def work(folder: Path) -> Facts:
        from vitedge.prune.sensitivity import sensitivity
        from vitedge.vit.checkpoint import read_model

        batches = float_batches(pixels, read_preprocess(bundle))
        found = sensitivity(read_model(bundle.path(SOURCE)), batches, options, shares, reporter)
        tables = to_json(*_tables(found, options.prune_unit))
        count = found.measured_on
        points = [asdict(one) | {"agreement_ci95": wilson(round(one.agreement * count), count)} for one in found.points]
        write_json(folder / FILE, tables | found.to_dict() | {"points": points})
        return {"solved_on": found.solved_on, "measured_on": found.measured_on}

    bundle.run_step(
        "sensitivity",
        work,
        options=options.model_dump() | {"shares": shares, "images": len(pixels)},
        inputs=[f"{SOURCE}/model.safetensors", f"{SOURCE}/arch.json", f"{SOURCE}/preprocess.json", PIXELS],
        modules=(__name__,),
    )
    text = bundle.read(FILE)
    kept = documents.parse_json(text, FILE)
    return SensitivityResult({k: v for k, v in kept.items() if k != "tables"}, read_tables(text))


def _tables(found: Sensitivity, unit: str) -> list[Table]:
    """The whole model's curve and that of each layer."""
    note = (
        f"Closed form on {found.solved_on} calibration images, no gradient steps; agreement with the dense model "
        f"on {found.measured_on} others, with its 95 % interval."
    )
    columns = [f"share of {unit} removed", "agreement", "95 %", "expected KL (nats)"]
    decimals = dict.fromkeys([*columns, "share of the layer removed"], 4)

    def row(point: Point) -> list[Cell]:
        low, high = wilson(round(point.agreement * found.measured_on), found.measured_on)
        return [point.removed, point.agreement, f"[{low:.3f}, {high:.3f}]", point.predicted_kl]

    def table(title: str, columns: list[str], rows: list[list[Cell]]) -> Table:
        return Table(title, columns, rows, note, "sensitivity", bars=["agreement"], decimals=decimals)

    whole = [row(p) for p in found.points if p.layer == "total"]
    layers = [[p.layer, p.of_layer, *row(p)] for p in found.points if p.layer != "total"]
    return [
        table(f"Agreement against the share of {unit} removed", columns, whole),
        table("Each layer pruned alone", ["layer", "share of the layer removed", *columns], layers),
    ]
