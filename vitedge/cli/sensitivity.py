"""`vitedge sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitedge.bundle import DEFAULT_RUN, Bundle
from vitedge.cli.console import ConsoleReporter, print_json, print_table
from vitedge.cli.flags import with_flags
from vitedge.errors import VitedgeError
from vitedge.files import write_json
from vitedge.prune.options import PruneOptions

ANALYSIS = "analysis/25-sensitivity.json"
_BAR = 30


@with_flags({"prune": PruneOptions}, panels={"prune": "Pruning"})
def command(
    *,
    run: Annotated[Path, typer.Option("--run", help="Run folder, made by vitedge compress.")] = Path(DEFAULT_RUN),
    shares: Annotated[str, typer.Option("--shares", help="Shares of the model to try.")] = "0.1,0.2,0.3,0.4,0.5",
    images: Annotated[int, typer.Option("--images", help="Calibration images used at most.", min=1)] = 128,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    given: dict[str, Any],
) -> None:
    """Shows what pruning would cost, share by share and layer by layer.

    Agreement with the dense model on calibration images that nothing was solved on, in closed form only: what
    `vitedge compress --prune` reaches is better, since it also fits each block. The run's report shows it too.
    """
    options = PruneOptions(**given.get("prune", {}))
    wanted = parse_shares(shares)
    from vitedge.prune.sensitivity import sensitivity
    from vitedge.steps.source import SOURCE, float_batches, need_pixels, read_preprocess
    from vitedge.vit.checkpoint import read_model

    bundle = Bundle.open(run)
    pixels = need_pixels(bundle, "Measuring the sensitivity")[:images]
    bundle.verified(f"{SOURCE}/model.safetensors")
    model = read_model(bundle.path(SOURCE))
    batches = float_batches(pixels, read_preprocess(bundle))
    found = sensitivity(model, batches, options, wanted, ConsoleReporter()).to_dict()
    tables = as_tables(found, options.prune_unit)
    write_json(bundle.path(ANALYSIS), {"tables": tables})
    if json:
        print_json(found)
        return
    for table in tables:
        print_table(table["title"], [*table["columns"], ""], drawn(table), table["note"])


def parse_shares(text: str) -> list[float]:
    """The numbers of a list such as "0.1,0.3"; each is checked as --prune is."""
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise VitedgeError(f"'{text}' is no list of shares.", "", "Give such as --shares 0.1,0.2,0.3.") from error
    for share in shares:
        PruneOptions(prune=share)
    return shares


def as_tables(found: dict[str, Any], unit: str) -> list[dict[str, Any]]:
    """The whole model's curve and that of each layer, as `vitedge.report` takes tables."""
    note = (
        f"Closed form on {found['solved_on']} calibration images, no gradient steps; agreement with the dense model "
        f"on {found['measured_on']} others."
    )
    whole = [p for p in found["points"] if p["layer"] == "total"]
    layers = [p for p in found["points"] if p["layer"] != "total"]
    keys = ["removed", "agreement", "predicted_kl"]
    return [
        {
            "title": f"Agreement against the share of {unit} removed",
            "columns": [f"removed_share_of_{unit}", "agreement", "predicted_kl"],
            "rows": [[round(p[k], 4) for k in keys] for p in whole],
            "bars": ["agreement"],
            "note": note,
            "step": "sensitivity",
        },
        {
            "title": "Each layer pruned alone",
            "columns": ["layer", "removed_share_of_layer", f"removed_share_of_{unit}", "agreement", "predicted_kl"],
            "rows": [[p["layer"], *(round(p[k], 4) for k in ["of_layer", *keys])] for p in layers],
            "bars": ["agreement"],
            "note": note,
            "step": "sensitivity",
        },
    ]


def drawn(table: dict[str, Any]) -> list[list[Any]]:
    """The rows, each with a bar of its agreement."""
    at = table["columns"].index("agreement")
    return [[*row, "#" * round(_BAR * row[at])] for row in table["rows"]]
