"""What rounding one activation, or one layer's weights, does to the logits, each alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vitedge.data.preprocess import Preprocess
from vitedge.metrics import kl, sqnr_db
from vitedge.quant.fake import simulate
from vitedge.quant.scheme import Scheme
from vitedge.vit.architecture import Architecture
from vitedge.vit.config import ViTConfig
from vitedge.vit.macs import model_macs
from vitedge.vit.names import block_index
from vitedge.vit.products import PIXELS, units

# Images that single effects are measured on: the order of the layers shows early. One effect costs half a pass over the
# model, so that from this size on (between a ViT-S/16 and a ViT-B/16) half as many have to do.
IMAGES = 16
LARGE_MACS = 8_000_000_000


@dataclass(frozen=True)
class Sensitivity:
    """What quantising `name` alone does: Kullback-Leibler divergence of the probabilities (mean over images)
    and SQNR of the logits in dB (see `vitedge.metrics`)."""

    name: str
    kind: Literal["activation", "weight"]
    divergence: float
    sqnr_db: float


def start_of(name: str, blocks: int) -> int:
    """The first block that has to be computed again when `name` changes; -1 for the embedding."""
    index = block_index(name)
    if index is not None:
        return index
    return blocks if name in ("norm", "head") else -1


def first_images(batches: Iterable[Tensor], count: int) -> Tensor:
    """The first `count` images, in one tensor."""
    found: list[Tensor] = []
    for batch in batches:
        found.append(batch)
        if sum(len(b) for b in found) >= count:
            break
    return torch.cat(found)[:count]


def few_images(config: ViTConfig, batches: Iterable[Tensor]) -> Tensor:
    """The images that single effects are measured on."""
    return first_images(batches, IMAGES if model_macs(config) < LARGE_MACS else IMAGES // 2)


class Streams:
    """The float model's residual streams on a few images, so that a change is computed from its block on."""

    @torch.no_grad()
    def __init__(self, model: Architecture, images: Tensor, preprocess: Preprocess) -> None:
        self.model, self.preprocess = model, preprocess
        self.before = [model.embed(images)]
        self.images = images
        for i in range(len(model.blocks)):
            self.before.append(model.run_block(i, self.before[-1]))
        self.reference = model.classify(self.before[-1])

    @torch.no_grad()
    def logits(self, name: str, scheme: Scheme) -> Tensor:
        """Logits with `scheme`, which concerns `name` alone."""
        start = start_of(name, len(self.model.blocks))
        sim = simulate(self.model, scheme, self.preprocess)
        x = sim.embed(self.images) if start < 0 else self.before[start]
        for i in range(max(start, 0), len(self.model.blocks)):
            x = sim.run_block(i, x)
        return sim.classify(x)


@torch.no_grad()
def sensitivities(
    model: Architecture,
    scheme: Scheme,
    images: Tensor,
    preprocess: Preprocess,
    progress: Callable[[str], None] = lambda name: None,
) -> list[Sensitivity]:
    """Each activation and each weight of `scheme` quantised alone, the worst first. `images` [N, C, H, W]."""
    streams = Streams(model, images, preprocess)
    alone = replace(scheme, activations={}, weights={}, biases={})
    cases: list[tuple[str, Literal["activation", "weight"], Scheme]] = []
    for name, to in scheme.activations.items():
        if name != PIXELS:
            cases.append((name, "activation", replace(alone, activations={name: to})))
    layers: dict[str, list[str]] = {}
    for unit in units(model.config):
        if unit.name in scheme.weights:
            layers.setdefault(unit.layer, []).append(unit.name)
    for layer, parts in layers.items():
        weights = {n: scheme.weights[n] for n in parts}
        biases = {n: scheme.biases[n] for n in parts if n in scheme.biases}
        cases.append((layer, "weight", replace(alone, weights=weights, biases=biases)))
    found = []
    for name, kind, one in cases:
        progress(name)
        logits, reference = streams.logits(name, one), streams.reference
        divergence = kl(reference, logits, model.config.activation)
        found.append(Sensitivity(name, kind, divergence, sqnr_db(reference, logits)))
    return sorted(found, key=lambda e: -e.divergence)


@torch.no_grad()
def logits_of(model: Architecture, batches: Iterable[Tensor]) -> Tensor:
    """[N, classes]"""
    return torch.cat([model(batch) for batch in batches])
