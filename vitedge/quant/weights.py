"""Rounding all weights of a model, layer after layer, each against what the float model does.

The quantised copy runs along on the same images: a layer is rounded on the inputs that the quantised layers
before it deliver, and its bias takes back what its mean output moved by. (Fitting the weights themselves to
the float model's outputs on those inputs, as GPTAQ does (arXiv 2504.02692), was measured and left out: on
images not fitted to, logit SQNR fell from 24.5 to 19.5 dB on a ViT-Ti/16.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitedge.condition.ranges import Batches
from vitedge.data.preprocess import Preprocess
from vitedge.moments import Moments
from vitedge.quant.fake import attention_scale, quantize_sites, set_unit
from vitedge.quant.options import QuantOptions
from vitedge.quant.rounding import best_bias, gptq_or_nearest, nearest
from vitedge.quant.scheme import Activation, Scheme, Weight
from vitedge.quant.sensitivity import first_images
from vitedge.quant.uniform import weight_scales
from vitedge.tokens.modules import following
from vitedge.vit.architecture import Architecture
from vitedge.vit.convolution import Convolution, convolve, from_grid
from vitedge.vit.names import block_index
from vitedge.vit.products import PIXELS, Unit, units

# With fewer tokens for each input, as in the layers that see [CLS] alone, rounding trusts their covariance
# less.
TOKENS_PER_INPUT = 8
# A stem's convolutions are rounded on the first images alone: each image has many positions.
STEM_IMAGES = 32
STAGES = (
    ("downsample",),
    ("attention.reduce",),
    ("attention.q", "attention.k", "attention.v"),
    ("attention.out",),
    ("mlp.fc1", "mlp.gate"),
    ("mlp.depthwise",),
    ("mlp.fc2",),
)

Progress = Callable[[str], None]
# From a stream, or the values of a stem, to whatever comes after the layers that are watched.
Run = Callable[[Architecture, Any], Any]


class WeightRounder:
    """Runs the float model and its quantised copy side by side; `weights` and `biases` grow as it goes."""

    def __init__(
        self,
        model: Architecture,
        activations: dict[str, Activation],
        options: QuantOptions,
        preprocess: Preprocess,
        layers: set[str] | None = None,
        *,
        convolutions: bool = True,
    ) -> None:
        """layers: names of the Linears whose weights are rounded; None for all that `options` ask for.

        convolutions: whether those within the encoder are rounded too, depthwise ones with the preset "full".
        """
        self.float = model
        self.sim = copy.deepcopy(model).eval()
        quantize_sites(self.sim, activations)
        self.options, self.preprocess = options, preprocess
        self.weights: dict[str, Weight] = {}
        self.biases: dict[str, Tensor] = {}
        self.unfitted: list[str] = []
        self.layer_units: dict[str, list[Unit]] = {}
        rounded = {"linear"} | ({"stem"} if options.stem == "int8" else set())
        rounded |= {"stage"} if convolutions else set()
        rounded |= {"depthwise"} if convolutions and options.preset == "full" else set()
        for unit in units(model.config):
            if unit.kind in rounded and (layers is None or unit.layer in layers):
                self.layer_units.setdefault(unit.layer, []).append(unit)

    @torch.no_grad()
    def run(self, batches: Batches, progress: Progress = lambda name: None) -> None:
        """Rounds every layer asked for. `batches` is called three times."""
        with following(self.float, self.sim):
            self._run(batches, progress)

    def _run(self, batches: Batches, progress: Progress) -> None:
        if self.float.stem is not None and self.options.stem == "int8":
            self._stem(batches, progress)
        if self.float.stem is None and "patch_embed" in self.layer_units:
            self._patches(batches, progress)
        if "pre" in self.layer_units:
            images = list(batches())
            self._stage(["pre"], lambda model, x: model.embed(x), images, images, progress)
        ours = [self.sim.embed(batch) for batch in batches()]
        theirs = [self.float.embed(batch) for batch in batches()]
        for i in range(len(self.float.blocks)):
            for stage in STAGES:
                names = [f"block{i}.{part}" for part in stage]
                self._stage(names, partial(_run_block, index=i), ours, theirs, progress)
            for n in range(len(ours)):
                ours[n], theirs[n] = self.sim.run_block(i, ours[n]), self.float.run_block(i, theirs[n])
        for names in [*([f"pool.{part}" for part in stage] for stage in STAGES), [*self.float.config.heads()]]:
            self._stage(names, lambda model, x: model.classify(x), ours, theirs, progress)

    def _moments(self, layer: str) -> Moments:
        weight = self.float.linears()[layer].weight.flatten(1)
        return Moments(weight.shape[1], weight.shape[0])

    def _target(self, layer: str, ours: Tensor, theirs: Tensor) -> Tensor:
        """What the layer should give: the float layer's output on the float model's input, or on ours."""
        module = self.float.linears()[layer]
        output = module(theirs if self.options.correct else ours)
        return output.flatten(2).transpose(1, 2) if isinstance(module, Convolution) else output

    def _stage(self, layers: list[str], run: Run, ours: list[Any], theirs: list[Any], progress: Progress) -> None:
        """Rounds those of `layers` that there are, all at once, since none reads what another of them makes.

        run: computes them from the activations `ours` of the quantised copy and `theirs` of the float model.
        """
        names = [name for name in layers if name in self.layer_units]
        if not names:
            return
        progress(names[0])
        if self.layer_units[names[0]][0].kind == "depthwise":
            self._depthwise(names[0], run, ours, theirs)
            return
        moments = {name: self._moments(name) for name in names}
        for x, y in zip(ours, theirs, strict=True):
            mine, other = inputs_of(self.sim, run, names, x), inputs_of(self.float, run, names, y)
            for name in names:
                target, weight = self._target(name, mine[name], other[name]), None
                index = block_index(name)
                if index is not None and name.endswith((".out", ".fc2")) and not self.float.config.post_norm:
                    # LayerNorm divides each token by its deviation: the same error matters less in a large
                    # one.
                    weight = 1 / self._after(index, name, y).var(-1, keepdim=True).clamp_min(1e-12)
                    if name.endswith(".out"):
                        weight = list(self.float.encoder())[index].as_attended(weight)
                    weight = weight.flatten() / weight.mean()
                module = self.sim.linears()[name]
                rows = module.columns(mine[name]) if isinstance(module, Convolution) else mine[name]
                moments[name].add(rows, target, weight)
        for name in names:
            self._round(name, moments[name])

    def _depthwise(self, layer: str, run: Run, ours: list[Any], theirs: list[Any]) -> None:
        """Each filter has a few weights and a scale of its own: it is rounded to nearest, and its bias takes back what
        the mean of its outputs moved by."""
        conv, bits = self.float.linears()[layer], self.options.weight_bits
        assert isinstance(conv, Convolution)
        weight, bias = self._float_weight(layer)
        scales = weight_scales(weight, bits, torch.ones(weight.shape[1], dtype=torch.float64))[:, None].expand_as(
            weight
        )
        values = nearest(weight, scales, bits)
        if self.options.correct:
            rounded, moved, count = (values * scales).float().view_as(conv.weight), torch.zeros_like(bias), 0
            for x, y in zip(ours, theirs, strict=True):
                mine, other = (inputs_of(m, run, [layer], s)[layer] for m, s in ((self.sim, x), (self.float, y)))
                apart = self._target(layer, mine, other) - from_grid(
                    convolve(mine, rounded, None, conv.stride, conv.pads, conv.groups)
                )
                moved, count = moved + apart.flatten(0, 1).sum(0).double(), count + len(apart) * apart.shape[1]
            bias = moved / count if count else bias
        for unit in self.layer_units[layer]:
            self._store(unit, values, scales, bias)

    def _after(self, index: int, name: str, y: Tensor) -> Tensor:
        """The float stream after the sum that the layer writes to; `y` is the stream before the block."""
        if name.endswith(".out"):
            return list(self.float.encoder())[index].attend_unmerged(y)[..., : self.float.config.block_width(index)]
        return self.float.run_block(index, y)[..., : self.float.config.block_width(index)]

    def _stem(self, batches: Batches, progress: Progress) -> None:
        """The convolutions of a stem, one after the other."""
        exact, rounded = self.float.stem, self.sim.stem
        assert exact is not None and rounded is not None
        images = first_images(batches(), STEM_IMAGES).split(8)
        ours, theirs = [rounded.start(batch) for batch in images], [exact.start(batch) for batch in images]
        for index, block in enumerate(exact.blocks()):
            self._stage([block.placed.layer.unit], partial(_step_stem, index=index), ours, theirs, progress)
            for mine, other in zip(ours, theirs, strict=True):
                rounded.step(index, mine)
                exact.step(index, other)
        self._stage(["patch_embed"], lambda model, x: model.patch_embed(x[exact.last]), ours, theirs, progress)

    def _patches(self, batches: Batches, progress: Progress) -> None:
        """The patch embedding, on raw pixels: its input is exact, so it only needs rounding."""
        progress("patch_embed")
        conv = self.float.patch_embed
        moments = self._moments("patch_embed")
        mean, std = (torch.tensor(v)[None, :, None, None] for v in (self.preprocess.mean, self.preprocess.std))
        for batch in batches():
            pixels = (batch * std + mean) * 255
            moments.add(conv.columns(pixels), conv(batch).flatten(2).transpose(1, 2))
        self._round("patch_embed", moments)

    def _float_weight(self, layer: str) -> tuple[Tensor, Tensor]:
        """(weight [out, in], bias [out]) as the graph has them, float64."""
        module = self.float.linears()[layer]
        weight = module.weight.double()
        bias = module.bias.double() if module.bias is not None else weight.new_zeros(len(weight))
        if self._reads_pixels(layer):
            mean, std = (
                torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (self.preprocess.mean, self.preprocess.std)
            )
            weight = weight / std
            bias = bias - (weight * mean).sum((1, 2, 3))
            weight = weight / 255
        return weight.flatten(1), bias

    def _reads_pixels(self, layer: str) -> bool:
        return self.layer_units[layer][0].source == PIXELS

    def scheme(self, preset: str, activations: dict[str, Activation], facts: dict[str, Any]) -> Scheme:
        """The scheme that holds these activations and what was rounded."""
        if self.unfitted:
            said = f"rounded to nearest, since what they read hardly varies on these images: {', '.join(self.unfitted)}"
            facts = facts | {"warnings": [*facts.get("warnings", []), said]}
        return Scheme(
            preset=preset,
            activations=activations,
            weights=self.weights,
            biases={name: bias.numpy() for name, bias in self.biases.items()},
            groups={f"block{i}": b.groups for i, b in enumerate(self.float.config.blocks) if b.groups},
            facts=facts,
        )

    def _round(self, layer: str, moments: Moments) -> None:
        weight, bias = self._float_weight(layer)
        bits = self.options.weight_bits
        enough = moments.tokens >= TOKENS_PER_INPUT * weight.shape[1]
        covariance = moments.covariance()
        parts = self.layer_units[layer]
        scales = torch.empty_like(weight)
        for unit in parts:
            rows, columns = (slice(*p) if p else slice(None) for p in (unit.rows, unit.columns))
            importance = covariance.diagonal()[columns].clamp_min(1e-12)
            scales[rows, columns] = weight_scales(weight[rows, columns], bits, importance)[:, None]
        if self.options.rounding == "gptq":
            values, fitted = gptq_or_nearest(weight, scales, covariance, bits, 0.01 if enough else 0.3)
            self.unfitted += [] if fitted else [layer]
        else:
            values = nearest(weight, scales, bits)
        rounded = values * scales
        if self.options.correct:
            bias = best_bias(rounded, bias, moments)
        for unit in parts:
            self._store(unit, values, scales, bias)

    def _store(self, unit: Unit, values: Tensor, scales: Tensor, bias: Tensor) -> None:
        rows, columns = (slice(*p) if p else slice(None) for p in (unit.rows, unit.columns))
        factor = attention_scale(self.float.config, unit)
        q, s = values[rows, columns], scales[rows, columns][:, 0] * factor
        module = self.float.linears()[unit.layer]
        if isinstance(module, Convolution):
            stored, axis = q.reshape(-1, *module.weight.shape[1:]), 0
        else:
            stored, axis = q.T, 1
        weight = Weight(stored.to(torch.int8).contiguous().numpy(), s.float().numpy(), axis, self.options.weight_bits)
        self.weights[unit.name] = weight
        part = (bias[rows] * factor).float() if unit.bias else None
        if part is not None:
            self.biases[unit.name] = part
        dense = torch.from_numpy(weight.dequantize())
        set_unit(self.sim, unit, dense if dense.ndim == 4 else dense.T, part, self.preprocess)


class _Stop(Exception):
    """Ends a forward pass at the last layer that was asked for."""


def _run_block(model: Architecture, x: Tensor, index: int) -> Tensor:
    return model.run_block(index, x)


def _step_stem(model: Architecture, values: dict[str, Tensor], index: int) -> None:
    assert model.stem is not None
    model.stem.step(index, values)


def inputs_of(model: Architecture, run: Run, names: list[str], x: Any) -> dict[str, Tensor]:
    """Inputs [B, N, in] or [B, in] of the named Linears, which `run` computes from `x`; what comes after the last of
    them is not computed."""
    layers = {id(model.linears()[name]): name for name in names}
    found: dict[str, Tensor] = {}

    def hook(module: nn.Module, args: tuple[Tensor]) -> None:
        found[layers[id(module)]] = args[0]
        if len(found) == len(names):
            raise _Stop

    handles = [model.linears()[name].register_forward_pre_hook(hook) for name in names]
    try:
        run(model, x)
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found
