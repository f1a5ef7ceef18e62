"""`--model`: a name, a file or a folder, to a ViT with its preprocessing and class names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vitedge.data import preprocess as pp
from vitedge.data.classes import read_classes, repeated, some
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.vit.architecture import Architecture
from vitedge.vit.checkpoint import adapter as adapters
from vitedge.vit.checkpoint import hub, jax, named
from vitedge.vit.checkpoint.adapter import Merged
from vitedge.vit.checkpoint.channels import in_rgb
from vitedge.vit.checkpoint.convert import from_library, has_head, published_heads
from vitedge.vit.checkpoint.described import Known, describe, image_processor
from vitedge.vit.checkpoint.families.find import Family, find, of_tensors
from vitedge.vit.checkpoint.files import check_tensors, read_checkpoint, read_tensors
from vitedge.vit.checkpoint.folder import description, find_weights
from vitedge.vit.checkpoint.kinds import SUFFIXES
from vitedge.vit.checkpoint.pick import pick
from vitedge.vit.checkpoint.reference import Reference
from vitedge.vit.checkpoint.save import build_model, read_config
from vitedge.vit.config import ViTConfig, sides
from vitedge.vit.output import Output, with_output
from vitedge.vit.resize import resize_model

Activation = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True)
class LoadedModel:
    """A model and what came with it.

    Attributes:
        model: in eval mode, on the CPU, float32.
        preprocess: how its images were prepared.
        classes: one name a class, or None.
        origin: what was read, for the manifest and for people.
        random: True where the weights are random, so that accuracy means nothing.
        notes: what was taken where several things could be meant, for people.
        warnings: what was overridden, with both values.
        reference: the same weights in the source's own library, to compare with; None where it has no class of its own.
    """

    model: Architecture
    preprocess: Preprocess
    classes: list[str] | None
    origin: str
    random: bool = False
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    reference: Reference | None = None


@dataclass(frozen=True)
class _Asked:
    """The user's own words, which override what came with the model."""

    heads: int | None = None
    norm_eps: float | None = None
    classes: Path | None = None
    weights: str | None = None
    architecture: str | None = None
    adapter: Path | None = None
    output: Output = "logits"


@dataclass
class _Raw:
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


def load_model(
    source: str,
    *,
    heads: int | None = None,
    image_size: int | None = None,
    preprocess: str | None = None,
    classes: str | Path | None = None,
    activation: Activation | None = None,
    weights: str | None = None,
    norm_eps: float | None = None,
    architecture: str | None = None,
    output: Output = "logits",
    adapter: str | Path | None = None,
) -> LoadedModel:
    """The model that `source` names.

    Args:
        source: torchvision's name (`vit_b_16`, weights downloaded), `hf:ORG/NAME` and `timm:NAME` (downloaded from
            the Hub), `random:NAME` (random weights, for speed and size only), a checkpoint file, or a folder with one
            (torchvision's or timm's names, Hugging Face's, vitedge's own, a vitedge run).
        heads: where neither a description nor a published shape tells; overrides.
        image_size: another input resolution; the position embedding is interpolated.
        preprocess: `imagenet`, `inception` or a JSON file; overrides what came with the model.
        classes: a file with one name a line; overrides what came with the model.
        activation: "softmax" or "sigmoid" (multi-label); overrides.
        weights: which of a checkpoint's weights: "ema", "model", or a name in the file.
        norm_eps: epsilon of the LayerNorms; overrides.
        architecture: timm's name of the model, where a state dict comes without a config.json.
        output: "embedding" or "patch-tokens" (of every patch) instead of class logits.
        adapter: folder of a peft adapter (LoRA), which is merged into the model.

    Raises:
        VitedgeError: a checkpoint that is damaged, foreign, not finite, or of unknown preprocessing or heads.
    """
    given_names = Path(classes) if classes else None
    given_adapter = Path(adapter).expanduser() if adapter else None
    raw = _read(source, _Asked(heads, norm_eps, given_names, weights, architecture, given_adapter, output))
    prep = _preprocess(raw, source, preprocess)
    config, state = raw.config, raw.state
    as_read = (config, state, prep.with_image_size(config.image_size))
    config, state, prep = in_rgb(config, state, prep)
    config = replace(config, activation=_activation(raw, activation))
    reference, read = raw.reference, config
    if output != "logits":
        config, state = with_output(config, state, output)
        raw.classes = None
    if image_size and sides(image_size) != config.image_size:
        config, state = resize_model(config, state, sides(image_size))
    if reference and (config is not read or prep.channels != "rgb" or as_read[2].channels != "rgb"):
        reference = replace(reference, as_read=as_read)
    if prep.size != config.image_size:
        if not image_size and preprocess not in pp.PRESETS:
            side = config.image_size[0] if len({*config.image_size}) == 1 else config.image_size
            raw.warnings.append(
                f"the preprocessing crops to {prep.crop} pixels, the model takes {side}: both are "
                f"scaled to that (resize {prep.with_image_size(side).resize})"
            )
        prep = prep.with_image_size(config.image_size)
    names = _names(raw, config, given_names)
    notes, warnings = tuple(raw.notes), tuple(raw.warnings)
    return LoadedModel(build_model(config, state), prep, names, raw.origin, raw.random, notes, warnings, reference)


def _preprocess(raw: _Raw, source: str, given: str | None) -> Preprocess:
    prep = pp.parse_preprocess(given) if given else raw.preprocess
    if prep is None:
        raise VitedgeError(
            f"'{source}' does not say how its images were prepared.",
            "With another normalisation than in training a model's accuracy collapses, so it is not guessed.",
            "Put a preprocess.json beside the weights, or give --preprocess imagenet, --preprocess inception "
            "or --preprocess FILE.",
        )
    scaled = prep.with_image_size(raw.config.image_size)
    came = raw.preprocess and raw.preprocess.with_image_size(raw.config.image_size)
    if given and came is not None and came != scaled:
        raw.warnings.append(
            f"--preprocess overrides what came with the model: {scaled.difference(came)}; accuracy holds only for what "
            "the model was trained with"
        )
    return prep


def _activation(raw: _Raw, given: Activation | None) -> Activation:
    came = raw.activation
    if given:
        if came and came != given:
            raw.warnings.append(f"--activation {given} overrides what came with the model: {came}")
        return given
    if came is None and raw.config.classes == 1:
        raw.notes.append(
            "the head has one logit: its probability is the sigmoid (a softmax of one logit is always 1); "
            "--activation says otherwise"
        )
        return "sigmoid"
    return came or "softmax"


def _names(raw: _Raw, config: ViTConfig, given: Path | None) -> list[str] | None:
    names = list(read_classes(given)) if given else raw.classes
    if names is not None and len(names) != config.classes:
        raise VitedgeError(
            f"The model has {config.classes} classes, but there are {len(names)} class names.",
            f"They come from {given}." if given else "They came beside the weights.",
            "Give the list that the model was trained with: --classes FILE.",
        )
    if names is not None and (twice := repeated(names)):
        raw.notes.append(
            f"{len(twice)} class names stand for several classes: {some(twice)}; labels by these names are refused, "
            "labels by index hold (--classes FILE gives other names)"
        )
    if given and raw.classes and names != raw.classes:
        pairs = zip(raw.classes, names or [], strict=False)
        first = next((i, a, b) for i, (a, b) in enumerate([*pairs, ("", "")]) if a != b or not (a or b))
        raw.warnings.append(
            f"--classes overrides what came with the model: class {first[0]} is '{first[2]}', was '{first[1]}'"
        )
    return names


def _read(source: str, asked: _Asked) -> _Raw:
    path = hub.fetch(source) if hub.is_hub(source) else Path(source).expanduser()
    try:
        if path.is_dir():
            return _read_folder(path, asked)
        if path.is_file():
            return _read_file(path, asked)
    except (OSError, ValueError) as error:  # a name that no file system takes
        raise VitedgeError(f"'{source[:200]}' is no path of a model.", f"{error}.", "Check --model.") from error
    if looks_like_path(source):
        raise named.not_there(source)
    if asked.adapter:
        raise adapters.needs_a_checkpoint(source)
    config, state, prep, classes, random, reference = named.load(source)
    activation: Activation = "softmax"
    return _Raw(config, state, source, prep, classes, random, activation, reference=reference)


def looks_like_path(source: str) -> bool:
    """Whether the user meant a file or a folder, so that a missing one is not taken for a name."""
    return "/" in source or source.startswith(".") or Path(source).suffix in SUFFIXES


def _read_folder(folder: Path, asked: _Asked) -> _Raw:
    if (folder / "manifest.json").is_file() and (folder / "model" / "arch.json").is_file():
        return _read_vitedge(folder / "model", asked)
    if (folder / "arch.json").is_file():
        return _read_vitedge(folder, asked)
    path = find_weights(folder)
    if path is None:
        base = adapters.base_of(folder)
        raw = _read(str(base), replace(asked, adapter=folder))
        raw.notes.append(f"the adapter's own config says that its model is {base}")
        return raw
    return _read_file(path, asked)


def _read_vitedge(folder: Path, asked: _Asked) -> _Raw:
    if asked.adapter:
        raise adapters.needs_a_checkpoint(str(folder))
    config = read_config(folder)
    state = read_tensors(folder / "model.safetensors")
    check_tensors(state)
    raw = _Raw(config, state, f"{folder} (vitedge)", activation=config.activation)
    if asked.heads and asked.heads != config.blocks[0].heads:
        raw.warnings.append(f"--heads {asked.heads} is not used: arch.json says {config.blocks[0].heads}")
    return _with_files_beside(raw, folder)


def _read_file(path: Path, asked: _Asked) -> _Raw:
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
    raw = _convert(path, tensors, known, replace_heads(known, found.heads), asked)
    if found.where or found.others:
        text = f"the weights are '{found.where.rstrip('.') or 'the top'}' of {path.name}"
        if found.others:
            text += f"; it also holds {', '.join(repr(o.rstrip('.')) for o in found.others)} (--weights chooses)"
        raw.notes.append(text)
    return _with_adapter(_with_files_beside(raw, path.parent), merged, asked)


def _of_family(path: Path, family: Family, asked: _Asked) -> _Raw:
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
    raw = _Raw(config, state, origin, family.preprocess, activation=config.activation, reference=reference)
    raw.warnings += family.warnings
    if config.norm_eps != read.config.norm_eps:
        came = f"what {family.where} says: {read.config.norm_eps:g}"
        raw.warnings.append(f"--norm-eps {config.norm_eps:g} overrides {came}")
    if asked.heads and asked.heads != config.blocks[0].heads:
        raw.warnings.append(f"--heads {asked.heads} is not used: {family.where} says {config.blocks[0].heads}")
    if family.classes and len(family.classes) == config.classes and config.activation != "none":
        raw.classes = list(family.classes)
    return _with_adapter(_with_files_beside(raw, path.parent), merged, asked)


def _with_adapter(raw: _Raw, merged: Merged | None, asked: _Asked) -> _Raw:
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


def replace_heads(known: Known, heads: int | None) -> Known:
    """`known` with the heads that the checkpoint's own settings name, where the description names none."""
    return replace(known, heads=heads, where="its training settings") if heads and not known.heads else known


def _convert(path: Path, tensors: Mapping[str, Tensor], described: Known, known: Known, asked: _Asked) -> _Raw:
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
    return _Raw(config, state, origin, known.preprocess, names, False, activation, notes, warnings, reference)


def _width(tensors: Mapping[str, Tensor]) -> int:
    """Of the residual stream: the longest of the norms' vectors."""
    return max((len(t) for name, t in tensors.items() if t.ndim == 1 and "norm" in name), default=0)


def _with_files_beside(raw: _Raw, folder: Path) -> _Raw:
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


__all__: list[Any] = ["LoadedModel", "load_model", "looks_like_path"]
