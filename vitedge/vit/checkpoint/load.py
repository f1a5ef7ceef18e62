"""`--model`: a name, a file or a folder, to a ViT with its preprocessing and class names."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vitedge.data import preprocess as pp
from vitedge.data import preprocess_sources as sources
from vitedge.data.classes import read_classes
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.vit.architecture import Architecture
from vitedge.vit.checkpoint import named
from vitedge.vit.checkpoint.convert import check_finite, from_library
from vitedge.vit.checkpoint.files import SUFFIXES, read_tensors
from vitedge.vit.checkpoint.layout import HUGGING_FACE
from vitedge.vit.checkpoint.save import build_model
from vitedge.vit.config import ViTConfig, sides
from vitedge.vit.resize import resize_model


@dataclass(frozen=True)
class LoadedModel:
    """A model and what came with it.

    Attributes:
        model: in eval mode, on the CPU, float32.
        preprocess: how its images were prepared.
        classes: one name a class, or None.
        origin: what was read, for the manifest and for people.
        random: True where the weights are random, so that accuracy means nothing.
    """

    model: Architecture
    preprocess: Preprocess
    classes: list[str] | None
    origin: str
    random: bool = False


@dataclass(frozen=True)
class _Raw:
    config: ViTConfig
    state: dict[str, Tensor]
    origin: str
    preprocess: Preprocess | None = None
    classes: list[str] | None = None
    random: bool = False


def load_model(
    source: str,
    *,
    heads: int | None = None,
    image_size: int | None = None,
    preprocess: str | None = None,
    classes: Path | None = None,
    activation: str | None = None,
) -> LoadedModel:
    """The model that `source` names.

    source: torchvision's name (`vit_b_16`, weights downloaded), `random:NAME` (random weights, for speed and
        size only), a checkpoint file, or a folder with one (torchvision's or timm's names, Hugging Face's,
        vitedge's own, a vitedge bundle).
    heads: where the shapes can't tell.
    image_size: another input resolution; the position embedding is interpolated.
    preprocess: `imagenet`, `inception` or a JSON file; overrides what came with the model.
    classes: a file with one name a line; overrides what came with the model.
    activation: "softmax" or "sigmoid" (multi-label); overrides.

    Raises VitedgeError for a checkpoint that is damaged, foreign, not finite, or of unknown preprocessing.
    """
    raw = _read(source, heads)
    prep = pp.parse_preprocess(preprocess) if preprocess else raw.preprocess
    if prep is None:
        raise VitedgeError(
            f"'{source}' does not say how its images were prepared.",
            "With another normalisation than in training a model's accuracy collapses, so it is not guessed.",
            "Put a preprocess.json beside the weights, or give --preprocess imagenet, --preprocess inception "
            "or --preprocess FILE.",
        )
    config, state = raw.config, raw.state
    if activation:
        config = replace(config, activation=activation)  # type: ignore[arg-type]
    if image_size and sides(image_size) != config.image_size:
        config, state = resize_model(config, state, sides(image_size))
    if prep.crop != max(config.image_size):
        prep = prep.with_image_size(max(config.image_size))
    names = list(read_classes(classes)) if classes else raw.classes
    if names is not None and len(names) != config.classes:
        raise VitedgeError(
            f"The model has {config.classes} classes, but there are {len(names)} class names.",
            f"They come from {classes}." if classes else "They came beside the weights.",
            "Give the list that the model was trained with: --classes FILE.",
        )
    if len(prep.mean) != config.channels:
        raise VitedgeError(
            f"The model takes {config.channels} channels, but the preprocessing normalises {len(prep.mean)}.",
            "",
            "Give --preprocess FILE with one mean and one std a channel.",
        )
    return LoadedModel(build_model(config, state), prep, names, raw.origin, raw.random)


def _read(source: str, heads: int | None) -> _Raw:
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, heads)
    if path.is_file():
        return _read_file(path, heads)
    if looks_like_path(source):
        raise VitedgeError(f"There is no model '{source}'.", "", "Give a file or a folder that exists.")
    config, state, prep, classes, random = named.load(source)
    return _Raw(config, state, source, prep, classes, random)


def looks_like_path(source: str) -> bool:
    """Whether the user meant a file or a folder, so that a missing one is not taken for a name."""
    return "/" in source or source.startswith(".") or Path(source).suffix in SUFFIXES


def _read_file(path: Path, heads: int | None, **known: Any) -> _Raw:
    if (path.parent / "arch.json").is_file() and path.name == "model.safetensors":
        return _read_vitedge(path.parent)
    config, state, layout = from_library(read_tensors(path), heads=heads, **known)
    beside, names = path.parent / "preprocess.json", path.parent / "classes.txt"
    return _Raw(
        config,
        state,
        f"{path} ({layout.name})",
        Preprocess.load(beside) if beside.is_file() else None,
        list(read_classes(names)) if names.is_file() else None,
    )


def _read_folder(folder: Path, heads: int | None) -> _Raw:
    if (folder / "manifest.json").is_file() and (folder / "model" / "arch.json").is_file():
        return _read_vitedge(folder / "model")
    if (folder / "arch.json").is_file():
        return _read_vitedge(folder)
    if (folder / "config.json").is_file():
        return _read_hub_folder(folder, heads)
    return _read_file(_only_checkpoint(folder), heads)


def _only_checkpoint(folder: Path) -> Path:
    found = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES)
    preferred = [p for p in found if p.suffix == ".safetensors"] or found
    if len(preferred) != 1:
        listing = ", ".join(p.name for p in found) or "nothing that is one"
        raise VitedgeError(
            f"The folder '{folder}' does not hold exactly one checkpoint.",
            f"It holds {listing}.",
            "Give the path of the file itself.",
        )
    return preferred[0]


def _read_vitedge(folder: Path) -> _Raw:
    config = ViTConfig.from_dict(_json(folder / "arch.json"))
    state = read_tensors(folder / "model.safetensors")
    check_finite(state)
    names = folder / "classes.txt"
    prep = folder / "preprocess.json"
    return _Raw(
        config,
        state,
        f"{folder} (vitedge)",
        Preprocess.load(prep) if prep.is_file() else None,
        list(read_classes(names)) if names.is_file() else None,
    )


def _read_hub_folder(folder: Path, heads: int | None) -> _Raw:
    """A folder as Hugging Face's hub keeps it: ViTForImageClassification's, or timm's."""
    config = _json(folder / "config.json")
    checkpoint = _only_checkpoint(folder)
    if "pretrained_cfg" in config:
        raw = _read_file(checkpoint, heads)
        if raw.classes is None and isinstance(names := config.get("label_names"), list):
            raw = replace(raw, classes=[str(name) for name in names])
        return raw if raw.preprocess else replace(raw, preprocess=sources.from_timm(config["pretrained_cfg"]))
    if config.get("model_type") != "vit" or config.get("hidden_act", "gelu") != "gelu":
        raise VitedgeError(
            f"The model in '{folder}' is not a plain ViT.",
            f"config.json says model_type '{config.get('model_type')}', hidden_act '{config.get('hidden_act')}'.",
            "Give a folder of ViTForImageClassification with the erf form of GELU.",
        )
    tensors = {k: v for k, v in read_tensors(checkpoint).items() if not k.startswith("vit.pooler")}
    multi = config.get("problem_type") == "multi_label_classification"
    vit, state, _ = from_library(
        tensors,
        heads=heads or config["num_attention_heads"],
        norm_eps=config.get("layer_norm_eps", 1e-12),
        activation="sigmoid" if multi else "softmax",
    )
    prep = folder / "preprocessor_config.json"
    labels = config.get("id2label") or {}
    names = [labels[k] for k in sorted(labels, key=int)]
    beside = folder / "preprocess.json"
    return _Raw(
        vit,
        state,
        f"{folder} ({HUGGING_FACE.name})",
        Preprocess.load(beside)
        if beside.is_file()
        else sources.from_huggingface(_json(prep))
        if prep.is_file()
        else None,
        names if len(names) == vit.classes else None,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VitedgeError(f"'{path}' can't be read.", str(error), "Give a complete model folder.") from error
