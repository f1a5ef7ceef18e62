"""`vitedge compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitedge.bundle import DEFAULT_RUN, Bundle
from vitedge.cli.console import ConsoleReporter, out, print_json, print_table
from vitedge.cli.flags import with_flags
from vitedge.condition import ConditionOptions
from vitedge.config import CalibSection, ExportSection, ModelSection, StepsSection, load_config, make_config

_SECTIONS = {
    "model": ModelSection,
    "calib": CalibSection,
    "steps": StepsSection,
    "condition": ConditionOptions,
    "export": ExportSection,
}
_PANELS = {"calib": "Calibration pictures", "steps": "Steps", "condition": "Conditioning", "export": "ONNX"}
# What few users change has no flag; `[section]` in the TOML file sets it.
_NAMES: dict[str, str | None] = {
    f"condition.{name}": None for name in ("fold", "smooth", "balance", "groups", "group_gain", "group_size")
}
_NAMES |= {"condition.massive": "massive-drop"}


@with_flags(_SECTIONS, panels=_PANELS, names=_NAMES)
def command(
    *,
    run: Annotated[Path, typer.Option("--run", help="Run folder.")] = Path(DEFAULT_RUN),
    config: Annotated[Path | None, typer.Option("--config", help="TOML file; flags override it.")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    given: dict[str, Any],
) -> None:
    """Imports, compresses, exports."""
    from vitedge.pipeline import compress

    file = load_config(config) if config else {}
    settings = make_config(file, given, source=str(config) if config else "the command line")
    bundle = compress(run, settings, ConsoleReporter())
    if json:
        print_json({"run": str(run), "steps": {n: s["facts"] for n, s in bundle.manifest["steps"].items()}})
    else:
        _summary(bundle)


def _summary(bundle: Bundle) -> None:
    dense, export = bundle.facts("import"), bundle.facts("export")
    rows = [["source", dense["macs"] / 1e9, dense["params"] / 1e6, None, None]]
    for name, facts in export.items():
        if name.endswith(".onnx"):
            row = [name, facts["macs_exported"] / 1e9, facts["params"] / 1e6]
            rows.append([*row, bundle.path(name).stat().st_size / 2**20, facts["logit_difference"]])
    columns = ["", "GMACs", "M parameters", "MiB", "largest logit difference to PyTorch"]
    print_table(f"{dense['origin']}", columns, rows, f"Compared on {export['check_images']}.")
    if dense["random_weights"]:
        out.print("The weights are random: figures of speed and size hold, accuracy means nothing.")
    run = "" if str(bundle.root) == DEFAULT_RUN else f" --run {bundle.root}"
    out.print(f"Next: vitedge build --target onnxruntime{run}")
