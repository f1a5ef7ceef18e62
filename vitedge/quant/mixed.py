"""Mixed precision: as much in INT8 as a bound on the accuracy lost allows.

Activations are ranked by what each does to the logits alone; the worst go back to float, as many as it takes,
and after them the weights. What is lost is measured on held-out calibration images, which nothing was fitted
to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor

from vitedge.condition.ranges import Batches
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.quant.fake import simulate
from vitedge.quant.layout import PIXELS, int8_share, units
from vitedge.quant.options import QuantOptions
from vitedge.quant.scheme import Scheme
from vitedge.quant.sensitivity import IMAGES, Effect, effects, first_images, logits_of
from vitedge.vit.model import VisionTransformer

# What one image with another class costs in points of its own, where none was seen: for top-1, images whose class
# moves have two nearly equal probabilities.
FLIP = {"agreement": 1.0, "top1": 0.25}
# Held-out images below which a bound of a few points can't be held.
FEW_HELD_OUT = 128


def lost(reference: Tensor, logits: Tensor, metric: str) -> tuple[float, float]:
    """(points lost, their standard error) of `logits` against the float model's `reference`, both [N,
    classes].

    "agreement": share of images with another top-1, in percent. "top1": what the float model's own
    probabilities
    say that costs: for an image whose top-1 moves from a to b, p(a) - p(b). Where those probabilities are
    calibrated, that is the expected drop of top-1, without labels and with far less noise than counting hits.
    """
    before, after = reference.argmax(-1), logits.argmax(-1)
    if metric == "agreement":
        each = (before != after).double()
    else:
        p = reference.double().softmax(-1)
        each = (p.gather(1, before[:, None]) - p.gather(1, after[:, None]))[:, 0]
    # Few images with another class, or none, say little: the error is at least that of one more of them.
    one_more = torch.cat([each, each.new_tensor([FLIP[metric]])])
    return 100 * float(each.mean()), 100 * float(one_more.std() / math.sqrt(len(one_more)))


def relax(
    model: VisionTransformer,
    scheme: Scheme,
    held_out: Batches,
    options: QuantOptions,
    preprocess: Preprocess,
    progress: Callable[[str], None] = lambda name: None,
    compared_with: VisionTransformer | None = None,
) -> Scheme:
    """`scheme` without as many of its worst tensors as it takes to lose at most `options.max_drop` points.

    The bound is held by the drop on `held_out` plus its standard error, so that it is likely kept on images
    not seen. Bisection over the ranking: about eight evaluations. `compared_with`: the model that the loss is
    counted from, `model` by default.
    """
    assert options.max_drop is not None
    reference = logits_of(compared_with or model, held_out())
    if not len(reference):
        raise VitedgeError(
            "There are no images to measure --max-drop on.",
            f"{options.held_out:.0%} of the calibration images are held out for it.",
            "Give more calibration images (--calib-size).",
        )
    ranking = effects(model, scheme, first_images(held_out(), IMAGES), preprocess, progress)
    order = [e for e in ranking if e.kind == "activation"] + [e for e in ranking if e.kind == "weight"]
    tried: list[dict[str, float]] = []

    def kept(count: int) -> bool:
        progress(f"max-drop: {count} in float")
        sim = simulate(model, without(model, scheme, order[:count]), preprocess)
        points, error = lost(reference, logits_of(sim, held_out()), options.metric)
        tried.append({"float": count, "lost": points, "error": error})
        return points + error <= (options.max_drop or 0)

    low, high = 0, len(order)  # all in float keeps any bound
    if kept(0):
        high = 0
    while low < high:
        middle = (low + high) // 2
        if middle and kept(middle):
            high = middle
        else:
            low = middle + 1
    relaxed = without(model, scheme, order[:high])
    share = int8_share(model.config, set(relaxed.weights), set(relaxed.activations))
    facts = {
        "metric": options.metric,
        "max_drop": options.max_drop,
        "images": len(reference),
        "float": [f"{e.kind} {e.name}" for e in order[:high]],
        "tried": tried,
        "ranking": [asdict(e) for e in ranking],
    }
    warnings = []
    if len(reference) < FEW_HELD_OUT:
        warnings.append(
            f"--max-drop was measured on {len(reference)} held-out pictures; below {FEW_HELD_OUT} its bound is unsure: "
            "give more calibration pictures (--calib-size)"
        )
    if high == len(order):
        warnings.append(f"nothing could stay in INT8 within --max-drop {options.max_drop}")
    return replace(relaxed, facts={**scheme.facts, "mixed": facts, "int8_macs": share, "warnings": warnings})


def without(model: VisionTransformer, scheme: Scheme, effects: list[Effect]) -> Scheme:
    """`scheme` with the given tensors in float."""
    dropped = {e.name for e in effects if e.kind == "activation"}
    layers = {e.name for e in effects if e.kind == "weight"}
    names = {u.name for u in units(model.config) if u.layer in layers}
    activations = {n: a for n, a in scheme.activations.items() if n not in dropped}
    if "patch_embed" in names:
        activations.pop(PIXELS, None)
    return replace(
        scheme,
        activations=activations,
        weights={n: w for n, w in scheme.weights.items() if n not in names},
        biases={n: b for n, b in scheme.biases.items() if n not in names},
    )
