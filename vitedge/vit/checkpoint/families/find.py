"""Which family's reader takes a checkpoint, by the description that lies beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from vitedge import documents
from vitedge.data.preprocess import Preprocess
from vitedge.data.preprocess_sources import from_open_clip, from_timm
from vitedge.vit.checkpoint import described, plain, timm_config
from vitedge.vit.checkpoint.families import clip, deit, dinov2, dinov3, open_clip, pvt, siglip, swin, timm_eva, timm_vit
from vitedge.vit.checkpoint.families.hugging_face import Settings
from vitedge.vit.checkpoint.families.tensors import ACTIVATIONS, Read
from vitedge.vit.config import sides

OPEN_CLIP = "open_clip_config.json"
_HUGGING_FACE = {kind: reader.read for reader in (deit, clip, siglip, dinov2, dinov3) for kind in reader.MODEL_TYPES}
_HUGGING_FACE |= dict.fromkeys(swin.MODEL_TYPES, swin.read_hugging_face)
_TIMM = {kind: reader for reader in (timm_vit, timm_eva, swin, pvt) for kind in reader.CLASSES}
_TODO = "Give the complete folder, as the library saved it."


@dataclass(frozen=True)
class Family:
    """How a described checkpoint is read.

    Attributes:
        read: its tensors, by the library's names -> the model.
        anchors: names of the patch embedding, by the first of which the model is found behind wrappers.
        preprocess, classes: what the description says of images and classes, where it does.
        where: what says so, for people.
        library, described, architecture: as in `Reference`.
        warnings: what was overridden, with both values.
    """

    read: Callable[[Mapping[str, Tensor]], Read]
    anchors: tuple[str, ...]
    preprocess: Preprocess | None
    classes: tuple[str, ...] | None
    where: str
    library: str
    described: str = ""
    architecture: str = ""
    warnings: tuple[str, ...] = ()


def find(config: Path | None, folder: Path, *, architecture: str | None = None) -> Family | None:
    """The family of a checkpoint with this config.json, or with timm's name of it; None for the plain ViT, and where
    nothing describes it. Raises VitedgeError."""
    if architecture is not None:
        return _of_architecture(config, architecture)
    if (folder / OPEN_CLIP).is_file() and config is None:
        return _open_clip(folder / OPEN_CLIP)
    if config is None:
        return None
    values = documents.read_json(config, todo=_TODO)
    if not isinstance(values, dict):
        return None
    kind, data = values.get("model_type"), values.get("pretrained_cfg")
    if isinstance(kind, str) and kind in _HUGGING_FACE:
        return _hugging_face(config, values)
    name = values.get("architecture") or (data.get("architecture") if isinstance(data, dict) else None)
    if not name or not isinstance(name, str):
        return None
    name = name.partition(".")[0]
    if timm_config.is_plain(name) and data is not None and not _is_oblong(values):
        settings = documents.validate(values, timm_config.TimmConfig, config, todo=_TODO)
        if not _other_than_plain(settings):
            return None  # whose tensors tell all
    return _timm(config, values, name)


def of_tensors(names: Iterable[str]) -> Family | None:
    """The family of a checkpoint that nothing describes, where its tensors' names tell it."""
    if not swin.is_torchvision(names):
        return None
    return Family(
        swin.read_torchvision, (swin.TORCHVISION_ANCHOR,), None, None, "torchvision's names of tensors", "torchvision"
    )


def _hugging_face(path: Path, values: dict[str, Any]) -> Family | None:
    s = documents.validate(values, Settings, path, todo=_TODO)
    plain = s.architecture in ("", "ViTForImageClassification") and s.hidden_act in ("gelu", "gelu_python")
    oblong = isinstance(s.image_size, list) and len({*s.image_size}) > 1
    if s.model_type == "vit" and not oblong and (plain or s.problem_type == "regression"):
        return None
    names = values.get("id2label") if s.output != "none" else None
    classes = None
    if isinstance(names, dict) and set(names) == {str(i) for i in range(len(names))}:
        classes = tuple(str(names[str(i)]) for i in range(len(names)))
    anchors = (
        "vision_model.embeddings.patch_embedding.weight",
        "embeddings.patch_embedding.weight",
        f"{s.model_type}.embeddings.patch_embeddings.projection.weight",
        "embeddings.patch_embeddings.projection.weight",
        "embeddings.patch_embeddings.weight",
    )
    read = partial(_HUGGING_FACE[s.model_type], s=s)
    prep = described.image_processor(path.parent)
    return Family(read, anchors, prep, classes, str(path), "Hugging Face", str(path))


def _of_architecture(config: Path | None, name: str) -> Family | None:
    """timm's model of the name that the user gives; what else a config.json of timm's says (pooling, arguments,
    preprocessing, class names) still holds."""
    values = documents.read_json(config, todo=_TODO) if config is not None else None
    if config is None or not isinstance(values, dict) or "pretrained_cfg" not in values:
        return _timm(Path(name), {"architecture": name}, name)
    family, theirs = _timm(config, {**values, "architecture": name}, name), values.get("architecture")
    if family is None or not isinstance(theirs, str) or theirs.partition(".")[0] in ("", name):
        return family
    said = documents.printable(theirs, 80)
    return replace(family, warnings=(f"--architecture {name} overrides what {config} says: {said}",))


def _timm(path: Path, values: dict[str, Any], name: str) -> Family | None:
    """timm's own model of that name, without memory, says what tensors can't tell."""
    config = documents.validate(values, timm_config.TimmConfig, path, todo=_TODO)
    model = timm_config.timm_model(path, name, config)
    reader = _TIMM.get(type(model).__name__)
    if reader is None:
        return None
    data = config.pretrained_cfg or dict(model.pretrained_cfg)
    labels = config.label_names if isinstance(config.label_names, list) else None
    classes = tuple(labels) if labels and len(labels) == config.num_classes else None
    where = f"{path} (timm's {name})"
    anchors = ("patch_embed.proj.weight", *getattr(reader, "ANCHORS", ()))
    own = str(path) if path.is_file() else ""

    def read(tensors: Mapping[str, Tensor]) -> Read:
        other = _other_than_plain(config)
        if other and (wrong := timm_config.misfit(model, tensors)):
            raise plain.refuse_by_name(f"By {path} the model", other, f"{name} has {wrong}")
        return reader.read(tensors, timm_config.timm_model(path, name, config, tensors))

    return Family(read, anchors, from_timm(data), classes, where, "timm", own, name)


def _other_than_plain(config: timm_config.TimmConfig) -> str:
    """What timm's description says that the plain ViT has not, and the architecture has; "" where there is nothing."""
    pool, act = timm_config.pooling(config), (config.model_args.act_layer or "gelu").lower()
    if pool not in (None, "token"):
        return plain.pooled(pool)
    if act not in plain.ERF_GELU and act in ACTIVATIONS:
        return f"{plain.activated(act)} in its MLPs"
    return plain.NO_HEAD if config.num_classes == 0 else ""


def _is_oblong(values: dict[str, Any]) -> bool:
    """Whether the images are not square by timm's description: then the tensors alone don't tell the grid."""
    data, arguments = values.get("pretrained_cfg"), values.get("model_args")
    size = data.get("input_size") if isinstance(data, dict) else None
    own = arguments.get("img_size") if isinstance(arguments, dict) else None
    sides = own if own is not None else size[1:] if isinstance(size, list) else None
    return isinstance(sides, list) and len(sides) == 2 and sides[0] != sides[1]


def _open_clip(path: Path) -> Family:
    values = documents.read_json(path, todo=_TODO)
    values = values if isinstance(values, dict) else {}
    s = documents.validate(values.get("model_cfg"), open_clip.Settings, path, todo=_TODO)
    prep = from_open_clip(values.get("preprocess_cfg") or {}, sides(s.vision_cfg.image_size), str(path))
    read = partial(open_clip.read, s=s)
    return Family(read, ("visual.conv1.weight",), prep, None, str(path), "open_clip", str(path))
