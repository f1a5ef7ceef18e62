"""Mixed precision: as much in INT8 as a bound on the accuracy lost allows.

Activations and weights are ranked by what each does to the logits alone, over the MACs that go to float with it;
the first go back to float, as many as it takes. How many is found with the weights in float, which costs an
evaluation each; then the weights are rounded for the activations that are left. Rounded before, they would make up
for noise that is gone: on a ViT-Ti/16 one such layer alone did 100 times the harm. What is lost is measured on
held-out calibration images, which nothing was fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from vitedge import metrics
from vitedge.condition.ranges import Batches
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.quant.choose import readers_macs
from vitedge.quant.fake import simulate
from vitedge.quant.options import QuantOptions
from vitedge.quant.scheme import Activation, Scheme
from vitedge.quant.sensitivity import Sensitivity, few_images, logits_of, sensitivities
from vitedge.vit.architecture import Architecture
from vitedge.vit.config import ViTConfig
from vitedge.vit.macs import model_macs
from vitedge.vit.products import PIXELS, units

# What one image with another class costs in points of its own, where none was seen: for top-1, images whose class
# moves have two nearly equal probabilities.
FLIP = {"agreement": 1.0, "top1": 0.25}
# What an activation costs in float where no product reads it (sums, the inputs of LayerNorm, softmax and GELU), as a
# share of all MACs: little, but no reason to give up those that do no harm.
NO_PRODUCT = 0.002
# Tensors that go to float next where the rounded weights break the bound; twice as many each time after.
STEP = 4
# Held-out images below which a bound of a few points can't be held.
FEW_HELD_OUT = 128


def lost(reference: Tensor, logits: Tensor, metric: str) -> tuple[float, float]:
    """(points lost, their standard error) of `logits` against the float model's `reference`, both [N,
    classes].

    "agreement": share of images with another top-1, in percent. "top1": what the float model's own
    probabilities
    say that costs: for an image whose top-1 moves from a to b, p(a) - p(b). Where those probabilities are
    calibrated, that is the expected drop of top-1, without labels and with far less noise than counting hits.
    "cosine": percent of the cosine between embeddings.
    """
    if metric == "cosine":
        return metrics.cosine_drop(reference.numpy(), logits.numpy())
    before, after = reference.argmax(-1), logits.argmax(-1)
    if metric == "agreement":
        each = (before != after).double()
    else:
        p = reference.double().softmax(-1)
        each = (p.gather(1, before[:, None]) - p.gather(1, after[:, None]))[:, 0]
    # Few images with another class, or none, say little: the error is at least that of one more of them.
    one_more = torch.cat([each, each.new_tensor([FLIP[metric]])])
    return 100 * float(each.mean()), 100 * float(one_more.std() / math.sqrt(len(one_more)))


@dataclass(frozen=True)
class Bound:
    """What may be lost of `reference` [N, classes], the float model's logits on the held-out images."""

    reference: Tensor
    held_out: Batches
    options: QuantOptions
    preprocess: Preprocess
    metric: str

    def check(self, model: Architecture, scheme: Scheme) -> tuple[bool, dict[str, float]]:
        """Whether `scheme` keeps the bound, and what it loses.

        The bound is held by the loss plus its standard error, so that it is likely kept on images not seen.
        """
        sim = simulate(model, scheme, self.preprocess)
        points, error = lost(self.reference, logits_of(sim, self.held_out()), self.metric)
        return points + error <= (self.options.max_drop or 0), {"lost": points, "error": error}


def relax(
    model: Architecture,
    scheme: Scheme,
    rounded: Callable[[dict[str, Activation], set[str]], Scheme],
    held_out: Batches,
    options: QuantOptions,
    preprocess: Preprocess,
    progress: Callable[[str], None] = lambda name: None,
    compared_with: Architecture | None = None,
) -> Scheme:
    """`scheme` without as many of its tensors as it takes to lose at most `options.max_drop` points.

    Args:
        scheme: all activations, and weights that show how much harm their rounding does.
        rounded: gives the scheme of these activations with the weights of these Linears rounded for them.
        compared_with: the model that the loss is counted from, `model` by default.
    """
    assert options.max_drop is not None
    reference = logits_of(compared_with or model, held_out())
    if not len(reference):
        raise VitedgeError(
            "There are no images to measure --max-drop on.",
            f"{options.held_out:.0%} of the calibration images are held out for it.",
            "Give more calibration images (--calib-size).",
        )
    # Embeddings have no classes.
    metric = "cosine" if model.config.activation == "none" else options.metric
    bound = Bound(reference, held_out, options, preprocess, metric)
    tried: list[dict[str, float | bool]] = []
    images = few_images(model.config, held_out())
    order = rank(model.config, sensitivities(model, scheme, images, preprocess, progress))

    def left(count: int) -> Scheme:
        return without(model.config, scheme, order[:count])

    def unrounded(count: int) -> Scheme:
        return replace(left(count), weights={}, biases={})

    def kept(count: int, tested: Scheme) -> bool:
        progress(f"max-drop: {count} in float")
        good, loss = bound.check(model, tested)
        tried.append({"float": count, "weights": bool(tested.weights), **loss})
        return good

    low, high = 1, len(order)  # all in float keeps any bound
    if kept(0, unrounded(0)):
        high = 0
    while low < high:
        middle = (low + high) // 2
        if kept(middle, unrounded(middle)):
            high = middle
        else:
            low = middle + 1
    step = STEP
    while True:
        rest = left(high)
        relaxed = rounded(rest.activations, {unit.layer for unit in units(model.config) if unit.name in rest.weights})
        if kept(high, relaxed) or high == len(order):
            break
        high, step = min(len(order), high + step), 2 * step
    facts = {
        "metric": metric,
        "max_drop": options.max_drop,
        "images": len(reference),
        "float": [f"{e.kind} {e.name}" for e in order[:high]],
        "tried": tried,
        "ranking": [asdict(e) for e in order],
    }
    warnings = []
    if len(reference) < FEW_HELD_OUT:
        warnings.append(
            f"--max-drop was measured on {len(reference)} held-out images; below {FEW_HELD_OUT} its bound is unsure: "
            "give more calibration images (--calib-size)"
        )
    if high == len(order):
        warnings.append(f"nothing could stay in INT8 within --max-drop {options.max_drop}")
    warnings = [*relaxed.facts.get("warnings", []), *warnings]
    return replace(relaxed, facts={**relaxed.facts, "mixed": facts, "warnings": warnings})


def rank(config: ViTConfig, found: list[Sensitivity]) -> list[Sensitivity]:
    """`found` in the order in which it goes to float: the most harm for the MACs that go with it first."""
    macs: dict[str, dict[str, int]] = {"activation": readers_macs(config), "weight": {}}
    for unit in units(config):
        macs["weight"][unit.layer] = macs["weight"].get(unit.layer, 0) + unit.macs
    total = model_macs(config)
    return sorted(found, key=lambda e: -e.divergence / (NO_PRODUCT + macs[e.kind].get(e.name, 0) / total))


def without(config: ViTConfig, scheme: Scheme, dropped: list[Sensitivity]) -> Scheme:
    """`scheme` with the given tensors in float."""
    values = {e.name for e in dropped if e.kind == "activation"}
    layers = {e.name for e in dropped if e.kind == "weight"}
    names = {u.name for u in units(config) if u.layer in layers}
    activations = {n: a for n, a in scheme.activations.items() if n not in values}
    if "patch_embed" in names:
        activations.pop(PIXELS, None)
    return replace(
        scheme,
        activations=activations,
        weights={n: w for n, w in scheme.weights.items() if n not in names},
        biases={n: b for n, b in scheme.biases.items() if n not in names},
    )
