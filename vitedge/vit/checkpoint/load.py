"""`--model`: a name, a file or a folder, to a ViT with its preprocessing and class names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from vitedge.data import preprocess as pp
from vitedge.data.classes import read_classes, repeated, some
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.vit.architecture import Architecture
from vitedge.vit.checkpoint.channels import in_rgb
from vitedge.vit.checkpoint.reference import Reference
from vitedge.vit.checkpoint.save import build_model
from vitedge.vit.checkpoint.source import Activation, Asked, Raw, read_source
from vitedge.vit.config import ViTConfig, sides
from vitedge.vit.output import Output, with_output
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
    raw = read_source(source, Asked(heads, norm_eps, given_names, weights, architecture, given_adapter, output))
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


def _preprocess(raw: Raw, source: str, given: str | None) -> Preprocess:
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


def _activation(raw: Raw, given: Activation | None) -> Activation:
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


def _names(raw: Raw, config: ViTConfig, given: Path | None) -> list[str] | None:
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
