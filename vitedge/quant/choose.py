"""Ranges chosen, and activations spared, by what they do to the logits."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from vitedge.data.preprocess import Preprocess
from vitedge.quant.scheme import Activation, Scheme
from vitedge.quant.sensitivity import Streams
from vitedge.vit.architecture import Architecture
from vitedge.vit.config import ViTConfig
from vitedge.vit.products import products, units

# Scales nearer to each other than this make no difference worth measuring.
SAME = 1.03


def choose_ranges(
    model: Architecture,
    candidates: dict[str, list[Activation]],
    images: Tensor,
    preprocess: Preprocess,
    progress: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, Activation], dict[str, float]]:
    """Value -> of its candidates the one that changes the logits least by itself, and value -> the mean square
    of that change over the logits' variance."""
    streams = Streams(model, images, preprocess)
    signal = float(streams.reference.double().var()) or 1.0  # a head of zeros, untrained
    chosen, noise = {}, {}
    for name, options in candidates.items():
        progress(name)
        errors = []
        near = max(o.scale for o in options) < SAME * min(o.scale for o in options)
        for to in options[:1] if near else options:
            logits = streams.logits(name, Scheme("", {name: to}, {}, {}))
            errors.append(float((logits - streams.reference).double().square().mean()) / signal)
        noise[name] = min(errors)
        chosen[name] = options[errors.index(noise[name])]
    return chosen, noise


def readers_macs(config: ViTConfig) -> dict[str, int]:
    """Value -> MACs of the products that read it."""
    macs: dict[str, int] = {}
    for unit in units(config):
        macs[unit.source] = macs.get(unit.source, 0) + unit.macs
    for _, sources, count in products(config):
        for source in sources:
            macs[source] = macs.get(source, 0) + count
    return macs


def spared(config: ViTConfig, noise: dict[str, float], share: float) -> list[str]:
    """The activations to leave in float: the noisiest first, as long as the products that read them are at most
    `share` of all MACs together."""
    macs = readers_macs(config)
    total = sum(unit.macs for unit in units(config)) + sum(count for _, _, count in products(config))
    left, names = share * total, []
    for name in sorted(noise, key=lambda n: -noise[n]):
        if 0 < macs.get(name, 0) <= left:
            left -= macs[name]
            names.append(name)
    return names
