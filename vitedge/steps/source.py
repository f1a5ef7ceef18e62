"""The first two steps: the model as it came, and the images that compression looks at."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitedge import documents
from vitedge.bundle import Bundle, StepRecord
from vitedge.data.dataset import Dataset
from vitedge.data.folder import is_there, open_dataset
from vitedge.data.preprocess import Preprocess
from vitedge.data.sample import load_pixels
from vitedge.data.textures import draw_textures
from vitedge.errors import VitedgeError
from vitedge.files import write_json, write_text
from vitedge.manifest import Facts, sha256_file
from vitedge.quant.checks import check_pixels
from vitedge.reporter import Reporter
from vitedge.sections import CalibSection, ModelSection

if TYPE_CHECKING:
    from torch import Tensor

SOURCE = "source"
PIXELS = "calib/pixels.npy"
DATASET = "calib/dataset.json"
_CONFIG_FILES = {".json", ".txt", ".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz", ".tar"}
_BESIDE = {"preprocess.json", "classes.txt", "arch.json", "config.json"}
_BESIDE |= {"preprocessor_config.json", "processor_config.json", "open_clip_config.json"}


def import_model(bundle: Bundle, options: ModelSection, reporter: Reporter) -> StepRecord:
    """Reads the checkpoint into `source/`: model.safetensors, arch.json, preprocess.json, classes.txt."""

    def work(folder: Path) -> Facts:
        from vitedge.vit.checkpoint import load_model, save_model
        from vitedge.vit.checkpoint.reference import check
        from vitedge.vit.macs import model_macs, model_params

        reporter.info(f"reading {options.model}")
        loaded = load_model(options.model, **options.model_dump(exclude={"model", "verify"}))
        loaded = check(loaded, options.verify, overridden=options.preprocess is not None)
        save_model(folder / SOURCE, loaded.model)
        loaded.preprocess.save(folder / SOURCE / "preprocess.json")
        if loaded.classes:
            write_text(folder / SOURCE / "classes.txt", "\n".join(loaded.classes) + "\n")
        if figures := _training(Path(options.model).expanduser() / "training.json"):
            write_json(folder / SOURCE / "training.json", figures)
        config = loaded.model.config
        return {
            "origin": loaded.origin,
            "random_weights": loaded.random,
            "macs": model_macs(config),
            "params": model_params(config),
            "notes": list(loaded.notes),
            "warnings": list(loaded.warnings),
        }

    record = bundle.run_step(
        "import",
        work,
        options=options.model_dump(),
        inputs=[],
        external=_identity(options),
        modules=("vitedge.steps.source",),
    )
    for note in record.facts.get("notes", ()):
        reporter.info(note)
    for warning in record.facts.get("warnings", ()):
        reporter.warn(warning)
    return record


def _training(path: Path) -> Facts | None:
    """What `vitedge train` left beside the model, for the report; None where that file is none of its own."""
    if not path.is_file():
        return None
    try:
        found = documents.read_json(path)
    except VitedgeError:
        return None
    return found if isinstance(found, dict) and {"part", "images", "tables"} <= found.keys() else None


def _identity(options: ModelSection) -> dict[str, str]:
    """Digests of the files that the model is read from, so that a changed checkpoint is read again."""
    files = _read_from(Path(options.model).expanduser())
    if options.adapter:
        files += _read_from(Path(options.adapter).expanduser())
    files += [Path(p) for p in (options.preprocess, options.classes) if p and Path(p).is_file()]
    names = [file.name for file in files]
    return {f.name if names.count(f.name) == 1 else str(f): sha256_file(f) for f in files}


def _read_from(path: Path, *, base: bool = True) -> list[Path]:
    if path.is_dir():
        folder = path / "model" if (path / "manifest.json").is_file() else path
        files = [p for p in sorted(folder.iterdir()) if p.suffix in _CONFIG_FILES and p.is_file()]
        if base and (folder / "adapter_config.json").is_file():
            from vitedge.vit.checkpoint.adapter import base_named

            files += [f for named in base_named(folder) for f in _read_from(named, base=False)]
        return files
    if path.is_file():
        sharded = "-of-" in path.name or ".index." in path.name
        beside = [p for p in sorted(path.parent.iterdir()) if p.name in _BESIDE or (sharded and "-of-" in p.name)]
        return [path, *(p for p in beside if p != path and p.is_file())]
    return []


def open_calibration(given: str | None) -> Dataset | None:
    """The calibration images: of the data set given, or of `./calib` where there is one.

    A folder that only holds one data set (as this repository's `calib/` holds `shapes/`) stands for that set; of one
    with parts, the training images are taken. A text file lists images, as rknn-toolkit2's dataset.txt does.
    """
    folder = Path(given or "calib")
    if given and not is_there(given):
        raise VitedgeError(f"There is no calibration folder '{given}'.", "", "Give a folder of images with --calib.")
    if not given and not folder.is_dir():
        return None
    if folder.is_dir() and not (folder / "labels.csv").is_file():
        inner = [p for p in sorted(folder.iterdir()) if (p / "labels.csv").is_file()]
        if len(inner) == 1:
            folder = inner[0]
    return open_dataset(folder if folder.is_dir() else given or folder, part="train")


def sample_calibration(
    bundle: Bundle, dataset: Dataset | None, options: CalibSection, reporter: Reporter, *, drawn: bool
) -> StepRecord | None:
    """Calibration images, decoded and cropped, into `calib/pixels.npy`; None where there are none.

    drawn: where none are given, drawn ones stand in.
    """
    preprocess = read_preprocess(bundle)
    if dataset is None and drawn:
        dataset = draw_textures(options.calib_size, options.seed, max(256, *preprocess.size))
        reporter.warn(
            f"no calibration images were given: {options.calib_size} drawn ones stand in (ViT-Ti/16 in static INT8: "
            "agreement with FP32 0.968, with real images 0.976). For yours, give some hundred of the kind that the "
            "model will see: --calib DIR"
        )
    if dataset is None:
        bundle.drop_step("calib")
        return None
    root = dataset.root

    def work(folder: Path) -> Facts:
        reporter.info(f"reading up to {options.calib_size} calibration images from {root}")
        pixels, used = load_pixels(dataset, preprocess, options.calib_size, options.seed, folder / PIXELS)
        digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
        write_json(folder / DATASET, {"files": list(used.files), "seed": options.seed, "sha256": digest})
        path = dataset.origin or str(root.resolve())
        return {"path": path, "n": len(pixels), "of": len(dataset), "drawn": is_drawn(dataset)}

    record = bundle.run_step(
        "calib",
        work,
        options={"calib_size": options.calib_size, "seed": options.seed},
        inputs=[f"{SOURCE}/preprocess.json"],
        external={"calib": dataset.sha256()},
        modules=("vitedge.steps.source",),
    )
    _warn_about(bundle, record, root, reporter)
    return record


def _warn_about(bundle: Bundle, record: StepRecord, root: Path, reporter: Reporter) -> None:
    for warning in check_pixels(read_pixels(bundle), read_preprocess(bundle)):
        reporter.warn(warning)
    if record.facts["drawn"] and read_classes(bundle) != drawn_classes():
        reporter.warn(
            f"{root} holds drawn shapes, but the model was trained on something else: what is calibrated on them "
            "will not fit photographs; give a folder of your own images with --calib"
        )


def drawn_classes() -> list[str]:
    """The class names of the drawn `shapes` set."""
    from vitedge.data.shapes import SHAPES

    return list(SHAPES)


def is_drawn(dataset: Dataset) -> bool:
    """Whether that is the drawn `shapes` set, by its class names."""
    return dataset.classes is not None and list(dataset.classes) == drawn_classes()


def read_preprocess(bundle: Bundle) -> Preprocess:
    """The run's preprocessing."""
    return Preprocess.load(bundle.verified(f"{SOURCE}/preprocess.json"))


def read_classes(bundle: Bundle) -> list[str] | None:
    """The run's class names, where they are known."""
    name = f"{SOURCE}/classes.txt"
    return bundle.text(name).splitlines() if bundle.has(name) else None


def read_pixels(bundle: Bundle) -> np.ndarray | None:
    """The calibration images, uint8 [n, H, W, C], a memory map; None where the run has none."""
    return np.load(bundle.verified(PIXELS), mmap_mode="r") if bundle.has(PIXELS) else None


def need_pixels(bundle: Bundle, purpose: str) -> np.ndarray:
    """`read_pixels`, or a VitedgeError that says what they are needed for."""
    pixels = read_pixels(bundle)
    if pixels is None:
        raise VitedgeError(
            f"{purpose} needs calibration images.",
            "There was no folder ./calib, none was given, and nothing asked for drawn ones.",
            "Give a folder with some hundred images of the kind that the model will see: compress --calib DIR. "
            "Labels aren't needed.",
        )
    return pixels


def float_batches(pixels: np.ndarray, preprocess: Preprocess, size: int = 16) -> Callable[[], Iterator[Tensor]]:
    """Calling the result gives the images anew, as the float model takes them: [size, C, H, W] a batch."""
    import torch

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(pixels), size):
            yield torch.from_numpy(preprocess.normalize(pixels[start : start + size]))

    return batches
