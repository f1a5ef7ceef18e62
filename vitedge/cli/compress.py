"""`vitedge compress`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitedge import api
from vitedge.bundle import DEFAULT_RUN, Bundle
from vitedge.cli.console import ConsoleReporter, out, print_json, print_table
from vitedge.cli.flags import RUN, ConfigFlag, JsonFlag, RunFlag, with_flags
from vitedge.quant.options import METRICS
from vitedge.tables import Table

_UNITS = {"macs": "MACs", "params": "parameters", "time": "time"}


@with_flags("compress")
def command(*, run: RunFlag = RUN, config: ConfigFlag = None, json: JsonFlag = False, given: Mapping[str, Any]) -> None:
    """Imports, compresses, exports."""
    made = api.compress(run=run, config=config, reporter=ConsoleReporter(), **given)
    if json:
        print_json({"run": str(run), "steps": made.steps})
    else:
        _summary(made.bundle)


def _summary(bundle: Bundle) -> None:
    dense, export = bundle.facts("import"), bundle.facts("export")
    rows = [["source", dense["macs"] / 1e9, dense["params"] / 1e6, None, None]]
    for name, facts in export.items():
        if name.endswith(".onnx"):
            row = [name, facts["macs"] / 1e9, facts["params"] / 1e6]
            rows.append([*row, bundle.path(name).stat().st_size / 2**20, facts["logit_difference"]])
    quantized = bundle.facts("quantize")
    if quantized:
        rows.append(["onnx/int8.onnx", None, None, bundle.path("onnx/int8.onnx").stat().st_size / 2**20, None])
    columns = ["", "GMACs", "M parameters", "MiB", "largest logit difference to PyTorch"]
    print_table(Table(str(dense["origin"]), columns, rows, f"Compared on {export['check_images']}."))
    pruned, taught, trained = (bundle.facts(name) for name in ("prune", "distill", "qat"))
    if pruned and pruned["asked"]:
        same = pruned["agreement"]
        out.print(
            f"Pruned: {pruned['removed']:.1%} of the dense model's {_UNITS[pruned['unit']]} "
            f"({pruned['asked']:.0%} asked)"
            + ("." if same is None else f"; agreement with it {same:.3f} on {pruned['held_out']} held-out images.")
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
        sqnr, left = quantized["sqnr_db"], quantized.get("float_stem_macs")
        out.print(
            f"INT8: agreement with float {quantized['agreement']:.3f}, "
            f"{'exactly its logits' if sqnr is None else f'logit SQNR {sqnr:.1f} dB'}, on "
            f"{quantized['check_images']} (it was fitted to them); {quantized['int8_macs']:.0%} of the MACs in INT8"
            + ("." if left is None else f", {left:.0%} in the stem, which stays float.")
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
