"""The steps in their order; the only place that knows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitedge import targets
from vitedge.bundle import Bundle, StepRecord
from vitedge.config import RunConfig, load_config, make_config, save_config
from vitedge.reporter import Reporter

CONFIG = "vitedge.toml"


def compress(root: Path, config: RunConfig, reporter: Reporter | None = None) -> Bundle:
    """Everything from the checkpoint to the ONNX graphs, in the run folder `root`; what is up to date is
    kept.
    """
    from vitedge.steps.export import export_graphs
    from vitedge.steps.model import finish_model
    from vitedge.steps.source import SOURCE, import_model, sample_calibration
    from vitedge.steps.transform import condition_model

    reporter = reporter or Reporter()
    bundle = Bundle.create(root)
    with bundle.lock():
        try:
            _tell(import_model(bundle, config.model, reporter), reporter)
        except BaseException:
            bundle.remove_if_empty()
            raise
        save_config(root / CONFIG, config)
        record = sample_calibration(bundle, config.calib, reporter)
        if record:
            _tell(record, reporter)
        model, changed = SOURCE, False
        if record and config.steps.condition:
            step = condition_model(bundle, model, config.condition, reporter)
            model, changed = step.folder, changed or step.function_changed
            _tell(step.record, reporter)
        else:
            bundle.drop_step("condition")
        _tell(finish_model(bundle, model, function_changed=changed), reporter)
        _tell(export_graphs(bundle, "model", config.export, reporter), reporter)
    return bundle


def build(
    root: Path,
    target_name: str,
    precision: str | None,
    platform: str | None,
    options: dict[str, Any],
    reporter: Reporter | None = None,
) -> StepRecord:
    """One artifact of a target, from the run's graphs. Precision and platform default to the target's first."""
    from vitedge.steps.build import build_artifact

    reporter = reporter or Reporter()
    target = targets.get(target_name)
    bundle = Bundle.open(root)
    with bundle.lock():
        config = read_config(root, {"build": {target_name: options}})
        chosen = precision or target.precisions[0]
        place = platform or (target.platforms[0] if target.platforms else None)
        record = build_artifact(bundle, target, chosen, place, config.target_options(target_name), reporter)
        save_config(root / CONFIG, config)
        _tell(record, reporter)
    return record


def preview_build(
    root: Path, target_name: str, precision: str | None, platform: str | None, options: dict[str, Any]
) -> str | None:
    """The command that a target would run, where its options ask for it and not for a build; else None."""
    from vitedge.steps.build import preview_artifact

    target = targets.get(target_name)
    bundle = Bundle.open(root)
    with bundle.lock():
        config = read_config(root, {"build": {target_name: options}})
        return preview_artifact(
            bundle, target, precision or target.precisions[0], platform, config.target_options(target_name)
        )


def read_config(root: Path, *layers: dict[str, Any]) -> RunConfig:
    """The run's configuration with further layers over it."""
    path = root / CONFIG
    return make_config(load_config(path) if path.is_file() else {}, *layers, source=str(path))


def _tell(record: StepRecord, reporter: Reporter) -> None:
    if record.cached:
        reporter.info(f"{record.name}: up to date")
