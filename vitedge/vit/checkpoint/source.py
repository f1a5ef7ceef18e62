"""What a source holds, as it stands there: the tensors in our order, and what lies beside them. What the user says
over it is laid on top in `load`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from vitedge.data import preprocess as pp
from vitedge.data.classes import read_classes
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint import adapter as adapters
from vitedge.vit.checkpoint import hub, jax, named
from vitedge.vit.checkpoint.adapter import Merged
from vitedge.vit.checkpoint.convert import from_library, has_head, published_heads
from vitedge.vit.checkpoint.described import Known, describe, image_processor
from vitedge.vit.checkpoint.families.find import Family, find, of_tensors
from vitedge.vit.checkpoint.files import check_tensors, read_checkpoint, read_tensors
from vitedge.vit.checkpoint.folder import description, find_weights
from vitedge.vit.checkpoint.kinds import SUFFIXES
from vitedge.vit.checkpoint.pick import pick
from vitedge.vit.checkpoint.reference import Reference
from vitedge.vit.checkpoint.save import read_config
from vitedge.vit.config import ViTConfig
from vitedge.vit.output import Output
from vitedge.vit.resize import resize_model

Activation = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True)
class Asked:
    """The user's own words, which override what came with the model."""

    heads: int | None = None
    norm_eps: float | None = None
    classes: Path | None = None
    weights: str | None = None
    architecture: str | None = None
    adapter: Path | None = None
    output: Output = "logits"


@dataclass
class Raw:
    """What was read: the tensors by our names, and what lies beside them; None where nothing says."""

    config: ViTConfig
    state: dict[str, Tensor]
    origin: str
    preprocess: Preprocess | None = None
    classes: list[str] | None = None
    random: bool = False
    activation: Activation | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    reference: Reference | None = None


def read_source(source: str, asked: Asked) -> Raw:
    path = hub.fetch(source) if hub.is_hub(source) else Path(source).expanduser()
    try:
        if path.is_dir():
            return _read_folder(path, asked)
        if path.is_file():
            return _read_file(path, asked)
    except (OSError, ValueError) as error:  # a name that no file system takes
        raise VitedgeError(f"'{source[:200]}' is no path of a model.", f"{error}.", "Check --model.") from error
    if _looks_like_path(source):
        raise named.not_there(source)
    if asked.adapter:
        raise adapters.needs_a_checkpoint(source)
    config, state, prep, classes, random, reference = named.load(source)
    activation: Activation = "softmax"
    return Raw(config, state, source, prep, classes, random, activation, reference=reference)


def _looks_like_path(source: str) -> bool:
    """Whether the user meant a file or a folder, so that a missing one is not taken for a name."""
    return "/" in source or source.startswith(".") or Path(source).suffix in SUFFIXES


def _read_folder(folder: Path, asked: Asked) -> Raw:
    if (folder / "manifest.json").is_file() and (folder / "model" / "arch.json").is_file():
        return _read_vitedge(folder / "model", asked)
    if (folder / "arch.json").is_file():
        return _read_vitedge(folder, asked)
    path = find_weights(folder)
    if path is None:
        base = adapters.base_of(folder)
        raw = read_source(str(base), replace(asked, adapter=folder))
        raw.notes.append(f"the adapter's own config says that its model is {base}")
        return raw
    return _read_file(path, asked)


def _read_vitedge(folder: Path, asked: Asked) -> Raw:
    if asked.adapter:
        raise adapters.needs_a_checkpoint(str(folder))
    config = read_config(folder)
    state = read_tensors(folder / "model.safetensors")
    check_tensors(state)
    raw = Raw(config, state, f"{folder} (vitedge)", activation=config.activation)
    if asked.heads and asked.heads != config.blocks[0].heads:
        raw.warnings.append(f"--heads {asked.heads} is not used: arch.json says {config.blocks[0].heads}")
    return _with_files_beside(raw, folder)


def _read_file(path: Path, asked: Asked) -> Raw:
    """A file of a model folder means that folder: its description and its other files count."""
    if (path.parent / "arch.json").is_file() and path.name == "model.safetensors":
        return _read_vitedge(path.parent, asked)
    beside = description(path)
    family = find(beside, path.parent, architecture=asked.architecture)
    if family is not None:
        return _of_family(path, family, asked)
    known = describe(beside, names_given=asked.classes is not None) if beside else Known()
    found = pick(read_checkpoint(path), asked.weights, str(path))
    if (family := of_tensors(found.tensors)) is not None:
        return _of_family(path, family, asked)
    merged = adapters.merge(found.tensors, asked.adapter) if asked.adapter else None
    if merged and merged.own_head:
        known = replace(known, sizes=tuple(size for size in known.sizes if size[0] != "classes"))
    tensors = merged.tensors if merged else found.tensors
    raw = _convert(path, tensors, known, _replace_heads(known, found.heads), asked)
    if found.where or found.others:
        text = f"the weights are '{found.where.rstrip('.') or 'the top'}' of {path.name}"
        if found.others:
            text += f"; it also holds {', '.join(repr(o.rstrip('.')) for o in found.others)} (--weights chooses)"
        raw.notes.append(text)
    return _with_adapter(_with_files_beside(raw, path.parent), merged, asked)


def _of_family(path: Path, family: Family, asked: Asked) -> Raw:
    found = pick(read_checkpoint(path), asked.weights, str(path), family.anchors)
    merged = adapters.merge(found.tensors, asked.adapter) if asked.adapter else None
    tensors = merged.tensors if merged else found.tensors
    # transformers writes the registers of a model without any as an empty tensor, batch norms count their batches, and
    # Swin's index follows from its sizes.
    never_read = {k for k, v in tensors.items() if k.endswith("register_tokens") and not v.numel()}
    never_read |= {k for k in tensors if k.endswith(("num_batches_tracked", "relative_position_index"))}
    check_tensors({k: v for k, v in tensors.items() if k not in never_read})
    try:
        read = family.read(tensors)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise VitedgeError(
            f"The tensors of '{path}' do not fit what {family.where} describes.",
            f"{str(error).splitlines()[0][:300] if str(error) else type(error).__name__}.",
            "Put the config.json beside the weights that was saved with them.",
        ) from error
    config, state, size = read.config, read.state, family.preprocess.size if family.preprocess else None
    if read.any_size and size and config.image_size != size:
        config, state = resize_model(config, state, size, antialias=False)
    if asked.norm_eps and asked.norm_eps != config.norm_eps:
        config = replace(config, norm_eps=asked.norm_eps)
    own = Path(family.described).parent if family.described else path.parent
    reference = Reference(family.library, tensors, config, own, family.described, family.architecture, family=True)
    origin = f"{path} ({read.origin})"
    raw = Raw(config, state, origin, family.preprocess, activation=config.activation, reference=reference)
    raw.warnings += family.warnings
    if config.norm_eps != read.config.norm_eps:
        came = f"what {family.where} says: {read.config.norm_eps:g}"
        raw.warnings.append(f"--norm-eps {config.norm_eps:g} overrides {came}")
    if asked.heads and asked.heads != config.blocks[0].heads:
        raw.warnings.append(f"--heads {asked.heads} is not used: {family.where} says {config.blocks[0].heads}")
    if family.classes and len(family.classes) == config.classes and config.activation != "none":
        raw.classes = list(family.classes)
    return _with_adapter(_with_files_beside(raw, path.parent), merged, asked)


def _with_adapter(raw: Raw, merged: Merged | None, asked: Asked) -> Raw:
    """What an adapter changes beside the weights: its own files go before the base's; a head of its own makes a
    classifier of an encoder, and has classes of its own."""
    if merged is None or asked.adapter is None:
        return raw
    folder = asked.adapter
    raw.origin += f" with the adapter {folder}"
    raw.notes.append(f"an adapter of peft is merged: {merged.layers} layers, {len(merged.replaced)} tensors of its own")
    if (prep := image_processor(folder)) is not None:
        raw.preprocess = prep
    if merged.own_head:
        raw.activation = None if raw.activation == "none" else raw.activation
        if raw.classes and len(raw.classes) != raw.config.classes:
            raw.notes.append(
                f"the adapter has a head of {raw.config.classes} classes: the {len(raw.classes)} class names of its "
                "model do not hold (--classes FILE gives its own)"
            )
            raw.classes = None
    return _with_files_beside(raw, folder)


def _replace_heads(known: Known, heads: int | None) -> Known:
    """`known` with the heads that the checkpoint's own settings name, where the description names none."""
    return replace(known, heads=heads, where="its training settings") if heads and not known.heads else known


def _convert(path: Path, tensors: Mapping[str, Tensor], described: Known, known: Known, asked: Asked) -> Raw:
    notes, warnings = [], []
    if jax.is_jax(tensors):
        tensors, found = jax.to_timm(tensors)
        known = replace(known, heads=found, where="its tensors' shapes")
        notes.append(
            "weights of a JAX release: computed with GELU in its erf form, as timm computes them (JAX's own "
            "code has the tanh form, which differs by up to 0.0005 an activation)"
        )
    if known.heads_width not in (None, _width(tensors)):
        described, known = (replace(each, heads=None) for each in (described, known))
    heads, eps = asked.heads or known.heads, asked.norm_eps or known.norm_eps or 1e-6
    config, state, layout = from_library(dict(tensors), heads=heads, norm_eps=eps, headless=asked.output != "logits")
    backbone = not has_head(layout, tensors)
    described.check(config)
    published = published_heads(config.width, len(config.blocks), max(b.hidden for b in config.blocks))
    if asked.heads and known.heads not in (None, asked.heads):
        warnings.append(f"--heads {asked.heads} overrides what {known.where} says: {known.heads}")
    elif asked.heads and published and published[1] != asked.heads:
        warnings.append(f"--heads {asked.heads}: the published {published[0]} of this shape has {published[1]}")
    elif not heads and published:
        notes.append(
            f"{published[1]} heads, as the published {published[0]} of this width and depth has; --heads says otherwise"
        )
    elif known.heads and not asked.heads and not described.heads:
        notes.append(f"{known.heads} heads, by {known.where}")
    if asked.norm_eps and known.norm_eps not in (None, asked.norm_eps):
        warnings.append(f"--norm-eps {asked.norm_eps:g} overrides what {known.where} says: {known.norm_eps:g}")
    elif not described.where and not asked.norm_eps:
        notes.append(f"nothing describes the model: LayerNorm's epsilon is taken as {layout.name}'s 1e-6, GELU as erf")
    origin = f"{path} ({layout.name})"
    reference = Reference(layout.name, dict(tensors), config, path.parent, described.where, described.architecture)
    names = list(known.classes) if known.classes else None
    activation: Activation | None = "none" if backbone else known.activation
    return Raw(config, state, origin, known.preprocess, names, False, activation, notes, warnings, reference)


def _width(tensors: Mapping[str, Tensor]) -> int:
    """Of the residual stream: the longest of the norms' vectors."""
    return max((len(t) for name, t in tensors.items() if t.ndim == 1 and "norm" in name), default=0)


def _with_files_beside(raw: Raw, folder: Path) -> Raw:
    """The preprocessing and class names of the files of our own formats, which go before a description's."""
    if (prep := folder / "preprocess.json").is_file():
        raw.preprocess = Preprocess.load(prep)
        if note := pp.unit_note(prep):
            raw.notes.append(note)
        if raw.reference:
            raw.reference = replace(raw.reference, own_preprocess=True)
    if (names := folder / "classes.txt").is_file():
        raw.classes = list(read_classes(names))
    return raw
