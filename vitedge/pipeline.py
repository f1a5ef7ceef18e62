"""The steps in their order; the only place that knows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vitedge import targets
from vitedge.bundle import Bundle, StepRecord
from vitedge.config import Layer, RunConfig, load_config, make_config, save_config, without_local
from vitedge.reporter import Reporter

if TYPE_CHECKING:
    from vitedge.steps.transform import Transformed

CONFIG = "vitedge.toml"
# Steps that are asked for by themselves: what they say of another model goes with that model.
_ANALYSES = ("sensitivity", "analyze")


def compress(root: Path, config: RunConfig, reporter: Reporter | None = None) -> Bundle:
    """Everything from the checkpoint to the ONNX graphs, in the run folder `root`; what is up to date is
    kept.
    """
    from vitedge.steps.export import export_graphs
    from vitedge.steps.model import finish_model
    from vitedge.steps.quantize import quantize_model
    from vitedge.steps.source import SOURCE, import_model, open_calibration, sample_calibration

    reporter = reporter or Reporter()
    images = open_calibration(config.calib.of(config.calib.calib))
    bundle = Bundle.create(root)
    with bundle.lock():
        _tell(import_model(bundle, config.model, reporter), reporter)
        save_config(root / CONFIG, config)
        record = sample_calibration(bundle, images, config.calib, reporter, drawn=_needs_images(config))
        if record:
            _tell(record, reporter)
        model, changed = SOURCE, False
        for name, step in _transforms(config, record is not None).items():
            if step is None:
                bundle.drop_step(name)
                continue
            done = step(bundle, model, reporter)
            model, changed = done.folder, changed or done.function_changed
            _tell(done.record, reporter)
        _tell(finish_model(bundle, model, function_changed=changed), reporter)
        _tell(export_graphs(bundle, "model", config.export, reporter), reporter)
        if config.steps.quantize == "none":
            bundle.drop_step("quantize")
        else:
            _tell(quantize_model(bundle, config.steps.quantize, config.quantize, reporter), reporter)
        for name in _ANALYSES:
            if name in bundle.manifest.steps and bundle.stale(*bundle.manifest.steps[name].outputs):
                bundle.drop_step(name)
    return bundle


def _needs_images(config: RunConfig) -> bool:
    """Whether something is asked for that can't be done without calibration images."""
    cut = config.prune.prune is not None or config.prune.sparsity is not None
    return cut or config.steps.quantize in ("static", "qat")


def _transforms(config: RunConfig, images: bool) -> dict[str, Callable[..., Transformed] | None]:
    """The transforms of the float model in their order; None for one that is not asked for.

    Conditioning comes after pruning: its choices depend on the weights that are quantised. Zeros come after its
    rotation, which would fill them. Training in INT8 is the last: it starts from the static scheme of what is there.
    """
    from vitedge.steps.condition import condition_model
    from vitedge.steps.distil import distil_model
    from vitedge.steps.prune import prune_model
    from vitedge.steps.qat import qat_model
    from vitedge.steps.sparsify import sparsify_model

    cut = config.prune.prune is not None
    widths = config.prune.model_copy(update={"sparsity": None})
    taught = cut and config.prune.recover == "distill"
    full = config.steps.quantize in ("static", "qat") and config.quantize.preset == "full"
    conditions = config.condition.settled(full, config.quantize.max_drop)
    return {
        "prune": (lambda b, m, r: prune_model(b, m, widths, config.distill, r)) if cut else None,
        "distill": (lambda b, m, r: distil_model(b, m, config.distill, r)) if taught else None,
        # Without images there is nothing to measure ranges on; a float graph can still be exported.
        "condition": (lambda b, m, r: condition_model(b, m, conditions, r))
        if config.steps.condition and images
        else None,
        "sparsify": (lambda b, m, r: sparsify_model(b, m, config.prune, r)) if config.prune.sparsity else None,
        "qat": (lambda b, m, r: qat_model(b, m, config.qat, config.quantize, r))
        if config.steps.quantize == "qat"
        else None,
    }


def build(
    root: Path,
    target_name: str,
    precision: str | None,
    platform: str | None,
    sections: Layer,
    reporter: Reporter | None = None,
) -> StepRecord:
    """One artifact of a target, from the run's graphs. Precision and platform default to the target's first.

    sections: laid over the configuration that the run keeps, such as {"build": {"rknn": {...}}}.
    """
    from vitedge.steps.build import build_artifact

    reporter = reporter or Reporter()
    target = targets.get(target_name)
    bundle = Bundle.open(root)
    with bundle.lock():
        config = read_config(root, sections)
        chosen = precision or target.precisions[0]
        place = platform or (target.platforms[0] if target.platforms else None)
        record = build_artifact(bundle, target, chosen, place, config.target_options(target_name), reporter)
        save_config(root / CONFIG, config)
        _tell(record, reporter)
    return record


def preview_build(
    root: Path, target_name: str, precision: str | None, platform: str | None, sections: Layer
) -> str | None:
    """The command that a target would run, where its options ask for it and not for a build; else None."""
    from vitedge.steps.build import preview_artifact

    target = targets.get(target_name)
    bundle = Bundle.open(root)
    with bundle.lock():
        config = read_config(root, sections)
        return preview_artifact(
            bundle, target, precision or target.precisions[0], platform, config.target_options(target_name)
        )


def read_config(root: Path, *layers: Layer) -> RunConfig:
    """The run's configuration with further layers over it."""
    path = root / CONFIG
    own = without_local(load_config(path)) if path.is_file() else {}
    return make_config(own, *layers, source=str(path))


def _tell(record: StepRecord, reporter: Reporter) -> None:
    if record.cached:
        reporter.info(f"{record.name}: up to date")
