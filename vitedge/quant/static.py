"""From a conditioned model and calibration images to the frozen scheme."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vitedge.condition.ranges import Batches
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.quant.choose import choose_ranges, spared
from vitedge.quant.layout import int8_share, values
from vitedge.quant.observe import histograms
from vitedge.quant.observers import observe
from vitedge.quant.options import QuantOptions
from vitedge.quant.scheme import Activation, Scheme
from vitedge.quant.sensitivity import few_images
from vitedge.quant.weights import WeightRounder
from vitedge.vit.architecture import Architecture
from vitedge.vit.config import ViTConfig
from vitedge.vit.macs import model_macs
from vitedge.vit.products import PIXELS, stem_units

# Raw pixels are integers already.
EXACT_PIXELS = Activation(1.0, 0)


def calibrate(
    model: Architecture,
    batches: Batches,
    options: QuantOptions | None = None,
    preprocess: Preprocess | None = None,
    progress: Callable[[str], None] = lambda name: None,
    reference: Architecture | None = None,
) -> Scheme:
    """The scheme for `model` (conditioned, float).

    Args:
        batches: makes an iterator over normalised calibration images, float32 [B, 3, H, W]; called several
            times.
        preprocess: how they were normalised: the patch embedding's integers belong to raw pixels.
        progress: told the name of each layer as its turn comes.
        reference: the model that `max_drop` is counted from, where conditioning was not exact; `model` by default.

    Raises VitedgeError where there are no images, or an activation is NaN or infinite.
    """
    options = options or QuantOptions()
    preprocess = preprocess or Preprocess.centred(model.config.image_size, model.config.channels)
    model = model.eval()
    fitted, held_out = split(batches, options.held_out) if options.max_drop is not None else (batches, None)
    count = sum(len(batch) for batch in fitted())
    if not count:
        raise VitedgeError(
            "There are no calibration images.",
            "Static quantisation needs the ranges of the activations on real images.",
            "Give a folder of a few hundred images with --calib.",
        )
    progress("ranges")
    names = values(model.config, options.preset, stem=options.stem == "int8")
    seen = histograms(model, fitted(), names)
    if options.observer == "auto" and options.preset == "linear":
        both = [options.model_copy(update={"observer": name}) for name in ("mse", "minmax")]
        candidates = {n: [observe(seen[n], o) for o in both] for n in names if n != PIXELS}
        images = few_images(model.config, fitted())
        chosen, noise = choose_ranges(model, candidates, images, preprocess, progress)
        left = spared(model.config, noise, options.spare)
        activations = {n: EXACT_PIXELS if n == PIXELS else chosen[n] for n in names if n not in left}
    else:
        noise, left = {}, []
        if options.observer == "auto":
            options = options.model_copy(update={"observer": "mse"})
        activations = {n: EXACT_PIXELS if n == PIXELS else observe(seen[n], options) for n in names}
    facts: dict[str, Any] = {
        "options": options.model_dump(),
        "images": count,
        "noise": noise,
        "spared": left,
        "dead": [n for n in names if n != PIXELS and seen[n].minimum == seen[n].maximum],
    }

    def rounded(activations: dict[str, Activation], layers: set[str] | None = None) -> Scheme:
        rounder = WeightRounder(model, activations, options, preprocess, layers)
        rounder.run(fitted, progress)
        return rounder.scheme(options.preset, activations, facts | shares(model.config, rounder, activations))

    if held_out is None:
        return rounded(activations)
    from vitedge.quant.mixed import relax

    # To rank weights, rounding to nearest is enough, and free of what the activations do.
    nearest = round_weights(model, None, options, preprocess, static=True)
    scheme = replace(nearest, preset=options.preset, activations=activations)
    return relax(model, scheme, rounded, held_out, options, preprocess, progress, reference)


def round_weights(
    model: Architecture,
    batches: Batches | None,
    options: QuantOptions | None = None,
    preprocess: Preprocess | None = None,
    progress: Callable[[str], None] = lambda name: None,
    *,
    static: bool = False,
) -> Scheme:
    """The scheme for dynamic quantisation: integer weights, and the names of the activations to quantise at
    run time (their scales mean nothing). Without calibration images (`batches` None) weights are rounded to
    nearest.

    static: whether convolutions are rounded as in static quantisation; dynamic quantisation leaves them in float.
    """
    options = options or QuantOptions()
    size, channels = model.config.image_size, model.config.channels
    preprocess = preprocess or Preprocess.centred(size, channels)
    images = batches or (lambda: iter([torch.zeros(1, channels, *size)]))
    if batches is None:
        options = options.model_copy(update={"rounding": "nearest", "correct": False})
    options = options if static else options.model_copy(update={"stem": "float"})
    rounder = WeightRounder(model.eval(), {}, options, preprocess, convolutions=static)
    rounder.run(images, progress)
    names = values(model.config, "linear")
    facts = {"options": options.model_dump(), **shares(model.config, rounder, names)}
    return rounder.scheme("dynamic", dict.fromkeys(names, EXACT_PIXELS), facts)


def shares(config: ViTConfig, rounder: WeightRounder, activations: Iterable[str]) -> dict[str, float]:
    """Shares of the MACs: in INT8, and in a stem that stays float."""
    found = {"int8_macs": int8_share(config, set(rounder.weights), set(activations))}
    left = [unit.macs for unit in stem_units(config) if unit.name not in rounder.weights]
    return found | ({"float_stem_macs": sum(left) / model_macs(config)} if left else {})


def split(batches: Batches, share: float) -> tuple[Batches, Batches]:
    """(the batches to fit on, the batches held out): every n-th image is held out, by its place in the
    order."""
    every = max(2, round(1 / share))

    def pick(held: bool) -> Iterator[Tensor]:
        place = 0
        for batch in batches():
            index = torch.arange(place, place + len(batch))
            place += len(batch)
            chosen = batch[(index % every == every - 1) == held]
            if len(chosen):
                yield chosen

    return (lambda: pick(False)), (lambda: pick(True))
