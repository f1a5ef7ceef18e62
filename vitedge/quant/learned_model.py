"""A whole model with quantisers that learn, made of a scheme, and the scheme that it has learned."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vitedge.data.preprocess import Preprocess
from vitedge.quant.fake import attention_scale, dequantize_weights, replace_modules, set_sites, site_parts
from vitedge.quant.learned import LearnedConv, LearnedLinear, LearnedSite
from vitedge.quant.scheme import Activation, Scheme, Weight
from vitedge.vit.architecture import Architecture
from vitedge.vit.config import ViTConfig
from vitedge.vit.convolution import Convolution
from vitedge.vit.layers import Site
from vitedge.vit.products import PIXELS, Unit, units

# How far from the middle of its rounding interval a weight may start, in steps: its integer stays the scheme's.
INSIDE = 0.45


@torch.no_grad()
def learnable(model: Architecture, scheme: Scheme, preprocess: Preprocess, *, from_float: float = 1.0) -> Architecture:
    """A copy of the float `model` that computes as the quantised graph does, and whose weights and step sizes learn.

    Quantised exactly where `scheme` quantises; before any training it computes what `fake.simulate` gives.
    from_float: the weights that learn start at the scheme's integers, moved by this share of the way towards the
        float weights, as far as their integers allow.
    """
    student = dequantize_weights(model, scheme, preprocess)
    floats, layers = model.linears(), student.linears()
    parts: dict[str, list[Unit]] = {}
    for unit in units(model.config):
        if unit.name in scheme.weights:
            parts.setdefault(unit.layer, []).append(unit)
    replaced: dict[int, nn.Module] = {}
    for name, found in parts.items():
        layer = layers[name]
        base, groups = _steps(model.config, layer, found, scheme, preprocess)
        apart = (floats[name].weight - layer.weight) * from_float
        layer.weight += apart.clamp(-INSIDE * base, INSIDE * base)
        bits = scheme.weights[found[0].name].bits
        if isinstance(layer, Convolution):
            replaced[id(layer)] = LearnedConv(layer, base, bits)
        else:
            replaced[id(layer)] = LearnedLinear(layer, base, groups, bits)
    replace_modules(student, replaced)
    sites: dict[str, Site] = {}
    for name in student.sites():
        values = [(a, b, scheme.activations.get(value)) for value, a, b in site_parts(model.config, name)]
        if any(to is not None for _, _, to in values):
            sites[name] = LearnedSite(values)
    set_sites(student, sites)
    return student.requires_grad_(True)


def _steps(
    config: ViTConfig, layer: nn.Linear | Convolution, found: list[Unit], scheme: Scheme, preprocess: Preprocess
) -> tuple[Tensor, tuple[int, ...]]:
    """Step sizes of a layer, broadcast to its weight, and the sizes of its groups of columns."""
    if isinstance(layer, Convolution):
        raw = torch.cat([torch.from_numpy(scheme.weights[unit.name].scale) for unit in found]).double()
        if found[0].source != PIXELS:
            return raw[:, None, None, None].float(), (layer.in_channels,)
        # The scheme's are for raw pixels: see `fake.from_raw_pixels`.
        std = torch.tensor(preprocess.std, dtype=torch.float64)
        return (raw[:, None] * 255 * std)[:, :, None, None].float(), (layer.in_channels,)
    base = torch.ones_like(layer.weight)
    for unit in found:
        rows, columns = (slice(*p) if p else slice(None) for p in (unit.rows, unit.columns))
        scale = torch.from_numpy(scheme.weights[unit.name].scale) / attention_scale(config, unit)
        base[rows, columns] = scale[:, None]
    spans = [unit.columns for unit in found if unit.columns]
    return base, tuple(b - a for a, b in spans) or (layer.in_features,)


@torch.no_grad()
def learned_scheme(student: Architecture, scheme: Scheme, preprocess: Preprocess, facts: dict[str, Any]) -> Scheme:
    """What `student`, made of `scheme` by `learnable`, has learned: its integers, step sizes and biases."""
    activations: dict[str, Activation] = dict(scheme.activations)
    for name, site in student.sites().items():
        if isinstance(site, LearnedSite):
            for (value, _, _), to in zip(site_parts(student.config, name), site.learned(), strict=True):
                if to is not None:
                    activations[value] = to
    weights, biases, layers = {}, {}, student.linears()
    for unit in units(student.config):
        if unit.name not in scheme.weights:
            continue
        layer, old = layers[unit.layer], scheme.weights[unit.name]
        assert isinstance(layer, (LearnedLinear, LearnedConv))
        rows, columns = (slice(*p) if p else slice(None) for p in (unit.rows, unit.columns))
        values, factor = layer.integers(), attention_scale(student.config, unit)
        bias = layer.bias[rows] if layer.bias is not None else None
        if isinstance(layer, LearnedConv) and unit.source != PIXELS:
            steps, stored = layer.steps()[rows, :1, 0, 0].double(), values[rows]
        elif isinstance(layer, LearnedConv):
            steps = layer.steps()[:, :1, 0, 0].double() / 255 / preprocess.std[0]
            stored = values
            if bias is not None:
                mean, std = (torch.tensor(v, dtype=torch.float64) for v in (preprocess.mean, preprocess.std))
                kernel = values.double() * layer.steps().double()
                bias = bias.double() - (kernel * (mean / std)[:, None, None]).sum((1, 2, 3))
        else:
            steps = layer.steps().expand_as(layer.weight)[rows, columns][:, :1].double() * factor
            stored = values[rows, columns].T
            bias = None if bias is None else bias.double() * factor
        scale = steps[:, 0].float().numpy()
        weights[unit.name] = Weight(stored.contiguous().numpy(), scale, old.axis, old.bits)
        if unit.name in scheme.biases and bias is not None:
            biases[unit.name] = bias.float().numpy()
    return replace(
        scheme, activations=activations, weights=weights, biases=biases, facts={**scheme.facts, "qat": facts}
    )


@torch.no_grad()
def learned_floats(student: Architecture, model: Architecture, learned: Scheme, preprocess: Preprocess) -> Architecture:
    """A float model like `model` with what `student` has learned: its integers as weights, all else as it is."""
    state = student.state_dict()
    copied = copy.deepcopy(model).eval()
    copied.load_state_dict({name: state[name] for name in copied.state_dict()})
    return dequantize_weights(copied, learned, preprocess)
