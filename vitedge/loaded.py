"""The steps over a model in memory, without a run folder. Loads torch.

    model = vitedge.load("vit_b_16")
    small = vitedge.prune(model, "images/", prune=0.3)
    int8 = vitedge.quantize(vitedge.condition(small, "images/"), "images/", preset="linear")
    vitedge.export(int8, "int8.onnx")

No step changes the model that it gets. Images are a folder, a list of files, or pixels uint8 [N, H, W, C].
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitedge import config as options
from vitedge.config import takes_options
from vitedge.data.classes import read_classes
from vitedge.data.dataset import Dataset
from vitedge.data.folder import open_dataset, open_images
from vitedge.data.loader import iter_batches
from vitedge.data.preprocess import Preprocess
from vitedge.data.sample import sample
from vitedge.errors import VitedgeError
from vitedge.files import atomic_path
from vitedge.quant.scheme import Scheme
from vitedge.reporter import Reporter, WarningReporter
from vitedge.sections import SourceSection
from vitedge.steps import qat
from vitedge.steps import scheme as schemes
from vitedge.steps.export import CHECK_IMAGES, noise, write_graph
from vitedge.steps.prune import pruning_sees
from vitedge.steps.source import float_batches
from vitedge.vit.architecture import Architecture

Images = str | Path | Sequence[str | Path] | np.ndarray


@dataclass(frozen=True)
class Model:
    """A model in memory, and what belongs to it.

    Attributes:
        module: the float model, a torch module: normalised images float32 [B, C, H, W] -> logits [B, classes].
        preprocess: how its images are prepared.
        classes: one name a class, or None.
        origin: what was read.
        random_weights: accuracy means nothing.
        scheme: how it is quantised; None for a float model.
        mode: "none", "dynamic", "static" or "qat".
        report: what the last step said of itself.
        notes: what was taken where several things could be meant, and what was verified, when it was read.
        source: the model before anything that was not exact, which teaches and is compared with.
        before: the model before conditioning.
    """

    module: Architecture
    preprocess: Preprocess
    classes: list[str] | None = None
    origin: str = ""
    random_weights: bool = False
    scheme: Scheme | None = None
    mode: str = "none"
    report: Any = None
    notes: tuple[str, ...] = ()
    source: Architecture | None = None
    before: Architecture | None = None

    def logits(self, images: Images) -> np.ndarray:
        """Float32 [N, classes]; of a quantised model, as its integer kernels compute them (simulated)."""
        import torch

        module = self.module
        if self.scheme is not None:
            from vitedge.quant import simulate

            module = simulate(module, self.scheme, self.preprocess)
        pixels = _pixels(self, images)
        with torch.inference_mode():
            return torch.cat([module(x) for x in float_batches(pixels, self.preprocess)()]).numpy()

    def save(self, folder: str | Path) -> Path:
        """Writes the folder that `compress` and `load` take as a model: the float weights and what belongs to them."""
        from vitedge.train.output import save_folder

        save_folder(Path(folder), self.module, self.preprocess, self.classes)
        return Path(folder)

    def __repr__(self) -> str:
        from vitedge.vit.macs import model_macs, model_params

        config = self.module.config
        figures = f"{model_macs(config) / 1e9:.3g} GMACs, {model_params(config) / 1e6:.3g} M parameters"
        return f"Model({self.origin}: {figures}, {config.classes} classes, quantize={self.mode!r})"


@takes_options("load")
def load(model: str | Path = "vit_b_16", *, config: str | Path | None = None, **keywords: Any) -> Model:
    """The model that a name, a checkpoint file or a folder holds.

    Raises VitedgeError for one that is damaged, foreign or of unknown preprocessing, and for one that does not compute
    what its own library computes, where that is installed (`verify=False` leaves that out).
    """
    from vitedge.vit.checkpoint import load_model
    from vitedge.vit.checkpoint.reference import check

    chosen = options.configure("load", {**keywords, "model": model}, config).model
    found = load_model(chosen.model, **chosen.model_dump(exclude={"model", "verify"}))
    found = check(found, chosen.verify, overridden=chosen.preprocess is not None)
    reporter = WarningReporter()
    for warning in found.warnings:
        reporter.warn(warning)
    return Model(
        found.model,
        found.preprocess,
        found.classes,
        found.origin,
        found.random,
        notes=found.notes,
        source=found.model,
    )


@takes_options("images")
def images(calib: Images, model: Model, **keywords: Any) -> np.ndarray:
    """Calibration images as the model's pixels, uint8 [N, H, W, C]: a stratified sample of `calib_size` of a folder."""
    chosen = options.configure("images", keywords).calib
    if isinstance(calib, np.ndarray):
        return calib
    data = _dataset(calib)
    batches = iter_batches(sample(data, chosen.calib_size, chosen.seed), model.preprocess)
    parts = [pixels for pixels, _ in batches]
    if not parts:
        raise VitedgeError("None of the images can be read.", batches.warning(), "Give images of a common format.")
    return np.concatenate(parts)


@takes_options("prune")
def prune(model: Model, calib: Images, *, reporter: Reporter | None = None, **keywords: Any) -> Model:
    """A smaller model, fitted to what the larger one computed on the images; with `recover="distill"` taught by it."""
    from vitedge.prune import prune as prune_module

    settings = options.configure("prune", keywords)
    if settings.prune.prune is None and settings.prune.sparsity is None:
        raise VitedgeError("Nothing is to be pruned.", "", "Give prune=0.3 or sparsity=0.5.")
    reporter = reporter or WarningReporter()
    pixels = _calibration(model, calib, settings)
    seen, own = pruning_sees(pixels, settings.prune, settings.distill)
    small, report = prune_module(model.module, float_batches(seen, model.preprocess), own, reporter)
    pruned = replace(model, module=small, report=report, scheme=None, mode="none")
    return _taught(pruned, pixels, settings, reporter) if settings.prune.recover == "distill" else pruned


@takes_options("distill")
def distill(
    student: Model, calib: Images, teacher: Model | None = None, *, reporter: Reporter | None = None, **keywords: Any
) -> Model:
    """The student, taught on the images by the model that it was pruned from, or by `teacher`."""
    settings = options.configure("distill", keywords)
    pixels = _calibration(student, calib, settings)
    taught = replace(student, source=teacher.module) if teacher else student
    return _taught(taught, pixels, settings, reporter or WarningReporter())


@takes_options("condition")
def condition(model: Model, calib: Images, **keywords: Any) -> Model:
    """The same function with weights that survive quantisation; `massive_drop` is a budget for what is not exact."""
    from vitedge.condition import condition as condition_module

    settings = options.configure("condition", keywords)
    pixels = _calibration(model, calib, settings)
    conditioned, report = condition_module(model.module, float_batches(pixels, model.preprocess), settings.condition)
    return replace(model, module=conditioned, report=report, before=model.module, scheme=None, mode="none")


@takes_options("quantize")
def quantize(
    model: Model,
    calib: Images | None = None,
    quantize: Literal["static", "dynamic", "qat"] = "static",
    *,
    reporter: Reporter | None = None,
    **keywords: Any,
) -> Model:
    """The model with its INT8 scheme; "qat" also trains the weights. Without images only "dynamic" can be."""
    settings = options.configure("quantize", keywords)
    reporter = reporter or WarningReporter()
    pixels = None if calib is None else _calibration(model, calib, settings)
    before = model.before or model.module
    if quantize != "qat":
        scheme = schemes.make_scheme(
            quantize, model.module, pixels, model.preprocess, settings.quantize, reporter, before
        )
        for warning in scheme.facts.get("warnings", []):
            reporter.warn(warning)
        return replace(model, scheme=scheme, mode=quantize, report=scheme.facts)
    if pixels is None:
        raise VitedgeError("Training in INT8 needs images.", "", "Give some hundred, labels aren't needed.")
    teacher = model.source or model.module
    module, scheme, report = qat.learn_scheme(
        model.module, teacher, before, pixels, model.preprocess, settings.qat, settings.quantize, reporter
    )
    return replace(model, module=module, scheme=scheme, mode=quantize, report=report)


@takes_options("export")
def export(model: Model, path: str | Path, calib: Images | None = None, **keywords: Any) -> Path:
    """Writes the ONNX graph: INT8 where the model is quantised, else float32. Takes raw pixels uint8 [N, H, W, C].

    calib: images that the float graph is compared with PyTorch on; images of noise by default.
    Raises VitedgeError where it does not compute what the model does.
    """
    import onnx

    chosen = options.configure("export", keywords).export
    shown = noise(model.preprocess) if calib is None else _pixels(model, calib)[:CHECK_IMAGES]
    with atomic_path(Path(path)) as temporary:
        batch = None if chosen.dynamic_batch else chosen.batch
        write_graph(model.module, temporary, model.preprocess, batch, shown)
        if model.scheme is not None:
            onnx.save(schemes.quantize_graph(model.mode, onnx.load(temporary), model.scheme), temporary)
    return Path(path)


@takes_options("train")
def fine_tune(
    model: Model | str | Path | None = None,
    data: str | Path | None = None,
    *,
    config: str | Path | None = None,
    reporter: Reporter | None = None,
    **keywords: Any,
) -> Model:
    """A trained ViT with the classes of `data`. `report` has the figures.

    A name or a file as `model` works as `vitedge train`: the result is also written to `out`, and `resume` goes on
    there. A model in memory stays in memory, unless `out` is given.
    """
    inside = isinstance(model, Model)
    settings = options.configure("train", {**keywords, "model": None if inside else model, "data": data}, config)
    chosen, source = settings.train, settings.model
    if chosen.data is None:
        raise VitedgeError(
            "There is nothing to train on.", "No data set was named.", "Give a folder of labelled images: --data DIR."
        )
    if not isinstance(model, Model):
        model = load(**source.model_dump(include=set(SourceSection.model_fields)))
    from vitedge.train.finetune import fine_tune as train
    from vitedge.vit.checkpoint import load_model

    with tempfile.TemporaryDirectory(prefix="vitedge-train-") as scratch:
        out = Path(scratch) if inside and "out" not in keywords else Path(chosen.out)
        figures = train(
            model.module,
            model.preprocess,
            chosen.of(chosen.data) or "",
            out,
            settings.fine_tune,
            settings.loop,
            settings.augment,
            classes=None if chosen.classes == "auto" else read_classes(chosen.classes),
            known=model.classes,
            resume=chosen.resume,
            overwrite=chosen.overwrite,
            reporter=reporter or WarningReporter(),
        )
        found = load_model(str(out))
    origin = model.origin if inside else str(out)
    return Model(found.model, found.preprocess, found.classes, origin, report=figures, source=found.model)


def from_run(root: Path, folder: str = "model") -> Model:
    """The final float model of a run, with its scheme where it is quantised; folder "source": as it came."""
    from vitedge.bundle import Bundle
    from vitedge.steps.quantize import QUANT
    from vitedge.steps.source import SOURCE, read_classes, read_preprocess
    from vitedge.steps.transform import before_conditioning
    from vitedge.vit.checkpoint import read_model

    bundle = Bundle.open(root)

    def module(name: str) -> Architecture:
        for file in ("model.safetensors", "arch.json"):
            bundle.verified(f"{name}/{file}")
        return read_model(bundle.path(name))

    made = bundle.manifest.steps.get("quantize")
    mode = str(made.options["mode"]) if made is not None and folder == "model" else "none"
    return Model(
        module(folder),
        read_preprocess(bundle),
        read_classes(bundle),
        str(root),
        bool(bundle.facts("import").get("random_weights")),
        scheme=None if mode == "none" else Scheme.load(bundle.path(QUANT)),
        mode=mode,
        source=module(SOURCE),
        before=module(before_conditioning(bundle, folder)) if folder == "model" else None,
    )


def _taught(student: Model, pixels: np.ndarray, settings: options.RunConfig, reporter: Reporter) -> Model:
    from vitedge.train.distil import distill as distill_module

    teacher = student.source or student.module
    module, report = distill_module(student.module, teacher, pixels, student.preprocess, settings.distill, reporter)
    return replace(student, module=module, report=report, scheme=None, mode="none")


def _calibration(model: Model, calib: Images, settings: options.RunConfig) -> np.ndarray:
    return images(calib, model, calib_size=settings.calib.calib_size, seed=settings.calib.seed)


def _pixels(model: Model, given: Images) -> np.ndarray:
    """All the images, as the model's pixels."""
    if isinstance(given, np.ndarray):
        return given
    return np.concatenate([pixels for pixels, _ in iter_batches(_dataset(given), model.preprocess)])


def _dataset(given: str | Path | Sequence[str | Path]) -> Dataset:
    if isinstance(given, (str, Path)):
        return open_dataset(given) if Path(given).is_dir() else open_images([given])
    return open_images(list(given))
