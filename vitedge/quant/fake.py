"""A scheme put into the PyTorch model: fake quantisation at the sites, dequantised integers in the weights.

It computes what the Q/DQ graph computes, for measuring without a runtime.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vitedge.condition.fold import fold_attention_scale
from vitedge.data.preprocess import Preprocess
from vitedge.quant.integer import (
    KERNELS,
    ByGroups,
    IntegerConv,
    IntegerLinear,
    IntegerMatMul,
    KernelNorm,
    KernelSoftmax,
    Product,
)
from vitedge.quant.scheme import Activation, Scheme
from vitedge.quant.uniform import fake_quantize
from vitedge.vit.architecture import Architecture
from vitedge.vit.config import ViTConfig
from vitedge.vit.convolution import Convolution
from vitedge.vit.layers import Site
from vitedge.vit.products import PIXELS, Unit, units


class FakeQuant(Site):
    """A site that rounds. `parts`: (first channel, one past the last, scheme) where groups have scales of
    their own; None as scheme leaves the channels as they are."""

    def __init__(self, parts: Sequence[tuple[int, int, Activation | None]]) -> None:
        super().__init__()
        self.parts = tuple(parts)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.parts) == 1:
            to = self.parts[0][2]
            return x if to is None else fake_quantize(x, to)
        pieces = [x[..., a:b] if to is None else fake_quantize(x[..., a:b], to) for a, b, to in self.parts]
        return torch.cat(pieces, -1)


def site_parts(config: ViTConfig, site: str) -> list[tuple[str, int, int]]:
    """(value in the graph, first channel, one past the last) of a site: several for an MLP's units in groups."""
    if site.endswith((".mlp.fc1", ".mlp.gate", ".mlp.act", ".mlp.depthwise")):
        return [(site + suffix, a, b) for suffix, a, b in config.block_of(site).spans()]
    return [(site, 0, 0)]


def set_sites(model: Architecture, sites: dict[str, Site]) -> None:
    """Replaces the named sites of `model`, in place."""
    replace_modules(model, {id(old): sites[name] for name, old in model.sites().items() if name in sites})


def replace_modules(model: nn.Module, replaced: Mapping[int, nn.Module]) -> None:
    """Puts `replaced[id(module)]` in the place of each such module of `model`, in place."""
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if id(child) in replaced:
                parent._modules[key] = replaced[id(child)]


def quantize_sites(model: Architecture, activations: dict[str, Activation]) -> None:
    """Puts fake quantisers at all sites whose values are in `activations`, in place."""
    sites: dict[str, Site] = {}
    for name in model.sites():
        parts = [(a, b, activations.get(value)) for value, a, b in site_parts(model.config, name)]
        if any(to is not None for _, _, to in parts):
            sites[name] = FakeQuant(parts)
    set_sites(model, sites)


@torch.no_grad()
def set_unit(
    model: Architecture,
    unit: Unit,
    weight: Tensor,
    bias: Tensor | None,
    preprocess: Preprocess,
) -> None:
    """Writes the graph's weight [out, in] (or [width, channels, p, p]) and bias of `unit` into the model."""
    layer = model.linears()[unit.layer]
    if unit.source == PIXELS:
        weight, bias = from_raw_pixels(weight, bias, preprocess)
    else:
        scale = attention_scale(model.config, unit)
        weight = weight / scale
        bias = bias / scale if bias is not None else None
    rows, columns = (slice(*part) if part else slice(None) for part in (unit.rows, unit.columns))
    layer.weight[rows, columns] = weight.to(layer.weight.dtype)
    if bias is not None and layer.bias is not None:
        layer.bias[rows] = bias.to(layer.bias.dtype)


def attention_scale(config: ViTConfig, unit: Unit) -> float:
    """What the exported q carries: the attention scale, 1 where it is folded already."""
    if not unit.name.endswith(".attention.q"):
        return 1.0
    block = config.block_of(unit.name)
    return 1.0 if block.qk_norm else block.scale


def from_raw_pixels(weight: Tensor, bias: Tensor | None, preprocess: Preprocess) -> tuple[Tensor, Tensor | None]:
    """The inverse of `export.vit.fold_normalization`: for normalised images out of one for raw pixels."""
    w = weight.double() * 255
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (preprocess.mean, preprocess.std))
    if bias is not None:
        bias = bias.double() + (w * mean).sum((1, 2, 3))
    return w * std, bias


@torch.no_grad()
def dequantize_weights(model: Architecture, scheme: Scheme, preprocess: Preprocess) -> Architecture:
    """A copy of the float `model` with the scheme's integers as its weights, and its biases; activations float."""
    copied = copy.deepcopy(model).eval()
    for unit in units(model.config):
        if unit.name not in scheme.weights:
            continue
        stored = scheme.weights[unit.name].dequantize()
        weight = torch.from_numpy(stored if stored.ndim == 4 else stored.T.copy())
        bias = torch.from_numpy(scheme.biases[unit.name]) if unit.name in scheme.biases else None
        set_unit(copied, unit, weight, bias, preprocess)
    return copied


def simulate(model: Architecture, scheme: Scheme, preprocess: Preprocess) -> Architecture:
    """A copy of the float `model` that computes as the quantised graph does in integer kernels, for images
    normalised by `preprocess`. It has no weights that could be trained: see `learned_model.learnable` for that."""
    sim = dequantize_weights(model, scheme, preprocess)
    fold_attention_scale(sim)
    quantize_sites(sim, scheme.activations)
    _integer_products(sim, scheme, preprocess)
    _kernels(sim, scheme)
    return sim


@torch.no_grad()
def _integer_products(sim: Architecture, scheme: Scheme, preprocess: Preprocess) -> None:
    """Puts integer products wherever a factor is rounded, in place."""
    layers = sim.linears()
    found: dict[str, list[Unit]] = {}
    for unit in units(sim.config):
        found.setdefault(unit.layer, []).append(unit)
    replaced: dict[int, nn.Module] = {}
    for name, parts in found.items():
        layer = layers[name]
        if not any(u.name in scheme.weights and u.source in scheme.activations for u in parts):
            continue
        if isinstance(layer, Convolution):
            made = [_convolution_of(layer, unit, scheme, preprocess) for unit in parts]
            replaced[id(layer)] = made[0] if len(made) == 1 else ByGroups(made, [unit.rows for unit in parts])
        else:
            replaced[id(layer)] = IntegerLinear([_product_of(layer, unit, scheme) for unit in parts])
    for index, block in enumerate(sim.encoder()):
        if block.attention is None:
            continue
        factors = block.config.factor("q"), block.config.factor("k")
        for product, sources in (("scores", factors), ("context", ("probs", "v"))):
            a, b = (scheme.activations.get(f"block{index}.attention.{source}") for source in sources)
            if a is not None and b is not None:
                setattr(block.attention, f"{product}_product", IntegerMatMul(a, b))
    replace_modules(sim, replaced)


def _convolution_of(layer: Convolution, unit: Unit, scheme: Scheme, preprocess: Preprocess) -> nn.Module:
    """The unit's convolution: in integers, or in float where the scheme leaves its weight or what it reads so."""
    rows = slice(*unit.rows) if unit.rows else slice(None)
    weight, bias = layer.weight[rows], layer.bias[rows] if layer.bias is not None else None
    depthwise = unit.kind == "depthwise"
    groups = len(weight) if depthwise else layer.groups
    stored, reads = scheme.weights.get(unit.name), scheme.activations.get(unit.source)
    if stored is not None and (reads is not None or unit.source == PIXELS):
        source = preprocess if reads is None or unit.source == PIXELS else reads
        return IntegerConv(stored, torch.from_numpy(scheme.biases[unit.name]), source, layer.stride, layer.pads, groups)
    inputs = len(weight) if depthwise else layer.in_channels
    part = Convolution(inputs, len(weight), layer.kernel_size[0], layer.stride[0], layer.pads, groups)
    part.weight.copy_(weight)
    if part.bias is not None and bias is not None:
        part.bias.copy_(bias)
    return part


def _kernels(sim: Architecture, scheme: Scheme) -> None:
    """Puts the runtime's softmax, GELU and LayerNorm next to what is rounded, in place. Elsewhere the last bit of a
    result tells nothing, and torch's own are faster."""
    for index, block in enumerate(sim.encoder()):
        rounded = {n.removeprefix(f"block{index}.") for n in scheme.activations if n.startswith(f"block{index}.")}
        if block.attention is not None and rounded & {"attention.scores", "attention.probs"}:
            block.attention.softmax = KernelSoftmax(-1)
        if block.mlp is not None and any(name.startswith("mlp.") for name in rounded):
            block.mlp.act = KERNELS[block.config.act]()
        if block.downsample is not None:
            norms = block.downsample.norms()
            exact = {id(norm): KernelNorm.of(norm) for end, norm in norms.items() if f"downsample{end}" in rounded}
            replace_modules(block.downsample, exact)
        if block.attention is not None and block.attention.reduction is not None:
            reduction = block.attention.reduction
            if "attention.reduce_norm" in rounded:
                reduction.norm = KernelNorm.of(reduction.norm)
            if "attention.reduce_gelu" in rounded and reduction.reduction.pooled:
                reduction.act = KERNELS["gelu"]()
        if block.norm1 is not None and "norm1" in rounded:
            block.norm1 = KernelNorm.of(block.norm1)
        if block.norm2 is not None and "norm2" in rounded:
            block.norm2 = KernelNorm.of(block.norm2)


def _product_of(layer: nn.Linear, unit: Unit, scheme: Scheme) -> Product:
    """The unit's product, from the scheme and, where that leaves its weight in float, from `layer`."""
    rows, columns = (slice(*part) if part else slice(None) for part in (unit.rows, unit.columns))
    bias = None
    if unit.bias:
        stored = scheme.biases.get(unit.name)
        bias = layer.bias[rows] if stored is None else torch.from_numpy(stored)
    weight = scheme.weights.get(unit.name, layer.weight[rows, columns].T)
    return Product(rows, columns, scheme.activations.get(unit.source), weight, bias)
