"""What rounding one activation, or one layer's weights, does to the logits, each alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vitedge.data.preprocess import Preprocess
from vitedge.quant.fake import simulate
from vitedge.quant.layout import PIXELS, units
from vitedge.quant.scheme import Scheme
from vitedge.vit.model import VisionTransformer

# Images that single effects are measured on: the order of the layers shows early.
IMAGES = 24


@dataclass(frozen=True)
class Effect:
    """What quantising `name` alone does: Kullback-Leibler divergence of the probabilities (mean over images)
    and SQNR of the logits in dB."""

    name: str
    kind: Literal["activation", "weight"]
    divergence: float
    sqnr_db: float


def sqnr_db(reference: Tensor, other: Tensor) -> float:
    """Signal to quantisation noise ratio in dB: the variance of `reference` over the mean square of the
    difference; 200 where there is none."""
    noise = float((reference - other).double().square().mean())
    signal = float(reference.double().var())
    return min(200.0, 10 * float(torch.log10(torch.tensor(max(signal, 1e-30) / max(noise, 1e-30)))))


def divergence(reference: Tensor, other: Tensor) -> float:
    """Mean KL divergence of softmax(other) [N, classes] from softmax(reference)."""
    log_p, log_q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    return float(F.kl_div(log_q, log_p, log_target=True, reduction="batchmean").clamp_min(0))


def start_of(name: str, blocks: int) -> int:
    """The first block that has to be computed again when `name` changes; -1 for the embedding."""
    if name.startswith("block"):
        return int(name.split(".")[0][5:])
    return blocks if name in ("norm", "head") else -1


def first_images(batches: Iterable[Tensor], count: int) -> Tensor:
    """The first `count` pictures, in one tensor."""
    found: list[Tensor] = []
    for batch in batches:
        found.append(batch)
        if sum(len(b) for b in found) >= count:
            break
    return torch.cat(found)[:count]


@torch.no_grad()
def effects(
    model: VisionTransformer,
    scheme: Scheme,
    images: Tensor,
    preprocess: Preprocess,
    progress: Callable[[str], None] = lambda name: None,
) -> list[Effect]:
    """Each activation and each weight of `scheme` quantised alone, the worst first. `images` [N, C, H, W]."""
    blocks = len(model.blocks)
    streams = {-1: images, 0: model.embed(images)}
    for i in range(blocks):
        streams[i + 1] = model.run_block(i, streams[i])
    reference = model.classify(streams[blocks])
    found = []
    alone = replace(scheme, activations={}, weights={}, biases={})
    for name, to in scheme.activations.items():
        if name != PIXELS:
            progress(name)
            one = replace(alone, activations={name: to})
            found.append(_effect(name, "activation", model, one, streams, reference, preprocess))
    for layer in dict.fromkeys(u.layer for u in units(model.config) if u.name in scheme.weights):
        progress(layer)
        parts = [u.name for u in units(model.config) if u.layer == layer and u.name in scheme.weights]
        weights = {n: scheme.weights[n] for n in parts}
        one = replace(alone, weights=weights, biases={n: scheme.biases[n] for n in parts if n in scheme.biases})
        found.append(_effect(layer, "weight", model, one, streams, reference, preprocess))
    return sorted(found, key=lambda e: -e.divergence)


def _effect(
    name: str,
    kind: Literal["activation", "weight"],
    model: VisionTransformer,
    one: Scheme,
    streams: dict[int, Tensor],
    reference: Tensor,
    preprocess: Preprocess,
) -> Effect:
    start = start_of(name, len(model.blocks))
    sim = simulate(model, one, preprocess)
    x = sim.embed(streams[-1]) if start < 0 else streams[start]
    for i in range(max(start, 0), len(model.blocks)):
        x = sim.run_block(i, x)
    logits = sim.classify(x)
    return Effect(name, kind, divergence(reference, logits), sqnr_db(reference, logits))


@torch.no_grad()
def logits_of(model: VisionTransformer, batches: Iterable[Tensor]) -> Tensor:
    """[N, classes]"""
    return torch.cat([model(batch) for batch in batches])
