"""`vitedge sensitivity`."""

from __future__ import annotations

from typing import Any

from vitedge.bundle import Bundle
from vitedge.cli.console import ConsoleReporter, print_json, print_table
from vitedge.cli.flags import RUN, ConfigFlag, JsonFlag, RunFlag, with_flags
from vitedge.config import configure
from vitedge.errors import VitedgeError
from vitedge.files import write_json
from vitedge.prune.options import PruneOptions
from vitedge.tables import Table, to_json

ANALYSIS = "analysis/25-sensitivity.json"


@with_flags("sensitivity")
def command(*, run: RunFlag = RUN, config: ConfigFlag = None, json: JsonFlag = False, given: dict[str, Any]) -> None:
    """Shows what pruning would cost, share by share and layer by layer.

    Agreement with the dense model on calibration images that nothing was solved on, in closed form only: what
    `vitedge compress --prune` reaches is better, since it also fits each block. The run's report shows it too.
    """
    settings = configure("sensitivity", given, config)
    options, images = settings.prune, settings.sensitivity.images
    wanted = parse_shares(settings.sensitivity.shares)
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
    write_json(bundle.path(ANALYSIS), to_json(*tables))
    if json:
        print_json(found)
        return
    for table in tables:
        print_table(table)


def parse_shares(text: str) -> list[float]:
    """The numbers of a list such as "0.1,0.3"; each is checked as --prune is."""
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise VitedgeError(f"'{text}' is no list of shares.", "", "Give such as --shares 0.1,0.2,0.3.") from error
    for share in shares:
        PruneOptions(prune=share)
    return shares


def as_tables(found: dict[str, Any], unit: str) -> list[Table]:
    """The whole model's curve and that of each layer."""
    note = (
        f"Closed form on {found['solved_on']} calibration images, no gradient steps; agreement with the dense model "
        f"on {found['measured_on']} others."
    )
    whole = [p for p in found["points"] if p["layer"] == "total"]
    layers = [p for p in found["points"] if p["layer"] != "total"]
    keys = ["removed", "agreement", "predicted_kl"]
    columns = [f"share of {unit} removed", "agreement", "expected KL (nats)"]
    more: dict[str, Any] = {"note": note, "step": "sensitivity", "bars": ["agreement"]}
    digits = dict.fromkeys([*columns, "share of the layer removed"], 4)
    return [
        Table(
            f"Agreement against the share of {unit} removed",
            columns,
            [[p[k] for k in keys] for p in whole],
            decimals=digits,
            **more,
        ),
        Table(
            "Each layer pruned alone",
            ["layer", "share of the layer removed", *columns],
            [[p[k] for k in ["layer", "of_layer", *keys]] for p in layers],
            decimals=digits,
            **more,
        ),
    ]
