"""`vitedge compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitedge.bundle import DEFAULT_RUN, Bundle
from vitedge.cli.console import ConsoleReporter, out, print_json, print_table
from vitedge.cli.flags import with_flags
from vitedge.condition import ConditionOptions
from vitedge.config import (
    CalibSection,
    ExportSection,
    ModelSection,
    RunConfig,
    StepsSection,
    load_config,
    make_config,
)
from vitedge.errors import VitedgeError
from vitedge.prune import PruneOptions
from vitedge.quant.options import METRICS, QuantOptions
from vitedge.train.options import DistilOptions, QatOptions

_SECTIONS = {
    "model": ModelSection,
    "calib": CalibSection,
    "prune": PruneOptions,
    "distill": DistilOptions,
    "steps": StepsSection,
    "quantize": QuantOptions,
    "qat": QatOptions,
    "condition": ConditionOptions,
    "export": ExportSection,
}
_PANELS = {
    "calib": "Calibration images",
    "prune": "Pruning",
    "distill": "Training (--recover distill, --quantize qat)",
    "steps": "Quantisation",
    "quantize": "Quantisation",
    "qat": "Training (--recover distill, --quantize qat)",
    "condition": "Conditioning",
    "export": "ONNX",
}
_TEACHING = (
    *("batch", "accumulate", "lr", "temperature", "logit_weight", "feature_weight"),
    *("crop_scale", "mixup", "cutmix", "holdout", "precision"),
)
# What few users change has no flag; `[section]` in the TOML file sets it.
_ONLY_TOML = {
    "prune": ("head_align", "min_heads", "min_hidden", "fit_batch", "fit_views", "fit_lr", "damping"),
    "distill": _TEACHING,
    "qat": (*_TEACHING, "scale_lr", "block_steps", "block_lr", "from_float"),
    "quantize": ("percentile", "symmetric", "correct", "metric", "held_out"),
    "condition": ("fold", "smooth", "balance", "groups", "group_gain", "group_size", "images"),
}
_NAMES: dict[str, str | None] = {f"{section}.{name}": None for section, names in _ONLY_TOML.items() for name in names}
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
    _check_given(given, settings)
    bundle = compress(run, settings, ConsoleReporter())
    if json:
        print_json({"run": str(run), "steps": {n: s["facts"] for n, s in bundle.manifest["steps"].items()}})
    else:
        _summary(bundle)


def _check_given(given: dict[str, Any], settings: RunConfig) -> None:
    """Refuses flags that would do nothing: the user meant something by them."""
    seeded = {name: {k: v for k, v in values.items() if k != "seed"} for name, values in given.items()}
    qat = settings.steps.quantize == "qat"
    needs = {
        "prune": (settings.prune.prune is not None or settings.prune.sparsity is not None, "--prune or --sparsity"),
        "distill": (settings.prune.recover == "distill" or qat, "--recover distill or --quantize qat"),
        "quantize": (settings.steps.quantize != "none", "--quantize dynamic, static or qat"),
    }
    for section, (used, flag) in needs.items():
        if seeded.get(section) and not used:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in seeded[section])
            raise VitedgeError(f"{names} says nothing without {flag}.", "", f"Add {flag}, or leave it out.")


def _summary(bundle: Bundle) -> None:
    dense, export = bundle.facts("import"), bundle.facts("export")
    rows = [["source", dense["macs"] / 1e9, dense["params"] / 1e6, None, None]]
    for name, facts in export.items():
        if name.endswith(".onnx"):
            row = [name, facts["macs_exported"] / 1e9, facts["params"] / 1e6]
            rows.append([*row, bundle.path(name).stat().st_size / 2**20, facts["logit_difference"]])
    quantized = bundle.facts("quantize")
    if quantized:
        rows.append(["onnx/int8.onnx", None, None, bundle.path("onnx/int8.onnx").stat().st_size / 2**20, None])
    columns = ["", "GMACs", "M parameters", "MiB", "largest logit difference to PyTorch"]
    print_table(f"{dense['origin']}", columns, rows, f"Compared on {export['check_images']}.")
    pruned, taught, trained = (bundle.facts(name) for name in ("prune", "distill", "qat"))
    if pruned and pruned["asked"]:
        out.print(
            f"Pruned: {pruned['removed']:.1%} of the dense model's {pruned['unit']} ({pruned['asked']:.0%} asked)."
        )
    if taught:
        before, after = taught["agreement"]
        out.print(f"Distilled: agreement with the dense model {before:.3f} -> {after:.3f} on held-out images.")
    if trained:
        before, after = trained["agreement"]
        out.print(
            f"Trained in INT8: agreement with FP32 {before:.3f} (static) -> {after:.3f}, on {trained['holdout']} "
            "held-out images."
        )
    if quantized:
        sqnr = quantized["sqnr_db"]
        out.print(
            f"INT8: agreement with float {quantized['agreement']:.3f}, "
            f"{'exactly its logits' if sqnr is None else f'logit SQNR {sqnr:.1f} dB'}, on "
            f"{quantized['check_images']} (it was fitted to them); {quantized['int8_macs']:.0%} of the MACs in INT8."
        )
        mixed = None if trained else quantized.get("mixed")
        if mixed:
            lost, points = mixed["tried"][-1], METRICS[mixed["metric"]]
            out.print(
                f"--max-drop {mixed['max_drop']:g}: {len(mixed['float'])} activations and weights stay in float; loses "
                f"{lost['lost']:.2f} points of {points} (standard error {lost['error']:.2f}), estimated on "
                f"{mixed['images']} held-out images."
            )
    if dense["random_weights"]:
        out.print("The weights are random: figures of speed and size hold, accuracy means nothing.")
    run = "" if str(bundle.root) == DEFAULT_RUN else f" --run {bundle.root}"
    out.print(f"Next: vitedge build --target onnxruntime{' --precision int8' if quantized else ''}{run}")
