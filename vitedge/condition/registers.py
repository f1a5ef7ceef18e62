"""Massive activations into constant registers: attention's sink tokens are marked, and read as constants.

A few MLP units write norms far above all others into a few tokens of every image. Attention uses these tokens as
sinks; what was in them is drowned, so that all of them, in all images, have nearly the same key and value (Darcet et
al., arXiv 2309.16588; Sun et al., arXiv 2402.17762). As registers they can live outside the image tokens, without
training (Jiang et al., arXiv 2506.08010; RegCache, arXiv 2510.04547). Here these units go. Where they would have
written, a small mark is (`vit.layers.Marker`), along the direction that the stream uses least, and every later
attention reads a marked token as a constant row (`vit.layers.Register`): its own content is gone from keys and values
as before, without the massive norm.

Measured on a ViT-Ti/16, 512 images, agreement with the model before: the units set to 0 alone 0.826; and one constant
key/value row a head, scored for 4 tokens, 0.924; and the sink tokens deleted too 0.996; sink tokens read as the row, as
here, 0.998, since their number in each image is kept. Scaling the units' columns by 0.25 and 0.1: 0.969 and 0.930.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vitedge.condition.massive import OUTLIER, find_massive
from vitedge.condition.ranges import Batches
from vitedge.condition.surgery import assign
from vitedge.vit.architecture import Architecture
from vitedge.vit.layers import MLP, Block
from vitedge.vit.names import block_index

# A token is no sink below the first, and is one above the second, multiple of the stream's typical norm written to it.
RAMP = (1.5, 4.5)
# The mark's size, as multiples of the stream's typical norm; the first that every later block can tell from the rest.
MARKS = (1.5, 2.25, 3.5)
# Sinks of different images must be so alike (cosine with their mean, the mean of it) for one row to stand for all.
ALIKE = 0.9
# Agreement that may be lost on images not fitted to.
MOST_LOST = 0.02
JUDGED = 256


@dataclass(frozen=True)
class RegisterReport:
    """What was found and done.

    Attributes:
        columns: the massive columns, as (layer, unit, ratio).
        reason: why there are no registers; empty where there are.
        sinks: marked tokens an image, on average.
        mark: norm of the mark over the stream's typical norm.
        alike: block that reads registers -> mean cosine of the sinks there with their mean.
        agreement, images: with the model before, on images that nothing was fitted to where there are some.
    """

    columns: list[tuple[str, int, float]]
    reason: str = ""
    sinks: float = 0.0
    mark: float = 0.0
    alike: dict[str, float] = field(default_factory=dict)
    agreement: float = 1.0
    images: int = 0

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return asdict(self)


class _Unfit(Exception):
    """Why this model's massive activations can't become registers."""


@torch.no_grad()
def add_registers(model: Architecture, batches: Batches, images: int) -> tuple[Architecture, RegisterReport]:
    """A copy of `model`, whose LayerNorms are folded, with registers for its sink tokens; the model itself where it has
    none, or where they can't be constant.

    Args:
        batches: normalised images; the transform is fitted on the first `images`, and judged on others.
    """
    columns = find_massive(model, lambda: _some(batches, 0, images))
    found = [(c.layer, c.unit, c.ratio) for c in columns]
    if not columns:
        return model, RegisterReport(found, "no massive activations")
    try:
        if any(b.merge for b in model.config.blocks):
            raise _Unfit("tokens are merged")
        if model.config.hierarchical:
            raise _Unfit("attention stays within windows")
        layer = min((c.layer for c in columns), key=lambda name: block_index(name) or 0)
        if not layer.endswith(".mlp.fc2") or model.config.block_of(layer).act != "gelu":
            raise _Unfit(f"'{layer}' writes them, and not an MLP with GELU")
        units = [c.unit for c in columns if c.layer == layer]
        fitted = _Fit(copy.deepcopy(model), block_index(layer) or 0, units)
        report = replace(fitted.run(list(_some(batches, 0, images))), columns=found)
    except _Unfit as error:
        return model, RegisterReport(found, str(error))
    judged = list(_some(batches, images, images + JUDGED)) or list(_some(batches, 0, images))
    same = torch.cat([fitted.model(x).argmax(-1) == model(x).argmax(-1) for x in judged])
    report = replace(report, agreement=float(same.double().mean()), images=len(same))
    if report.agreement < 1 - MOST_LOST:
        return model, RegisterReport(found, f"agreement would fall to {report.agreement:.3f}")
    return fitted.model, report


def _some(batches: Batches, start: int, stop: int) -> Iterator[Tensor]:
    """The images from `start` to `stop`, in batches."""
    place = 0
    for batch in batches():
        part = batch[max(0, start - place) : max(0, stop - place)]
        place += len(batch)
        if len(part):
            yield part
        if place >= stop:
            return


def _normal(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class _Fit:
    """Fits the transform to a model, in place: `units` of the MLP of block `source` write the massive activations."""

    def __init__(self, model: Architecture, source: int, units: list[int]) -> None:
        self.model, self.source, self.units = model, source, units
        self.blocks: list[Block] = list(model.encoder())
        mlp = self.blocks[source].mlp
        assert mlp is not None
        self.mlp: MLP = mlp

    def run(self, images: list[Tensor]) -> RegisterReport:
        """Fits and installs; what was found. Raises _Unfit."""
        model, source = self.model, self.source
        before = []
        for x in images:
            x = model.embed(x)
            for index in range(source):
                x = model.run_block(index, x)
            before.append(self.blocks[source].attend(x))
        dense = [self.blocks[source].feed_forward(x) for x in before]
        self.typical = float(torch.stack([x.norm(dim=-1).median() for x in dense]).median())
        sinks = self._sinks(before)
        rows, alike = self._rows(dense, sinks)
        direction = self._least_used(dense, before, sinks, rows)
        self._mark()
        for mark in MARKS:
            assign(self.marker.row, mark * self.typical * direction)
            if self._install(before, sinks, rows):
                count = float(torch.cat([s.sum(1) for s in sinks]).mean())
                return RegisterReport([], sinks=count, mark=mark, alike=alike)
        raise _Unfit("later blocks can't tell marked tokens from others")

    def _units(self, x: Tensor) -> Tensor:
        """What the massive units have before GELU [B, N, units], for the stream before the MLP."""
        norm = self.blocks[self.source].norm2
        assert norm is not None
        return F.linear(norm(x), self.mlp.fc1.weight[self.units], self.mlp.fc1.bias[self.units])

    def _sinks(self, before: list[Tensor]) -> list[Tensor]:
        """[B, N] a batch: 0 for tokens that are none, 1 for sinks, by what the first (largest) unit writes."""
        columns = self.mlp.fc2.weight[:, self.units]
        self.low, self.high = (factor * self.typical / float(columns[:, 0].norm()) for factor in RAMP)
        found = []
        for x in before:
            z = self._units(x)
            sink = ((z[..., 0] - self.low) / (self.high - self.low)).clamp(0, 1)
            written = (F.gelu(z) * columns.norm(dim=0)).amax(-1)
            if bool((written[sink == 0] > OUTLIER * self.typical).any()):
                raise _Unfit("several units write them, to different tokens")
            found.append(sink)
        needed = self.model.config.queries(len(self.blocks) - 1)
        if needed is None or any(bool(sink[:, :needed].any()) for sink in found):
            raise _Unfit("the head reads the tokens that they are written to")
        return found

    def _rows(self, dense: list[Tensor], sinks: list[Tensor]) -> tuple[dict[int, Tensor], dict[str, float]]:
        """Block -> what its attention reads of a sink [C], the mean over sinks; for as long as they are massive."""
        rows: dict[int, Tensor] = {}
        alike = {}
        streams = dense
        for index in range(self.source + 1, len(self.blocks)):
            block = self.blocks[index]
            inside = torch.cat([x[s == 1] for x, s in zip(streams, sinks, strict=True)])
            usual = torch.stack([x.norm(dim=-1).median() for x in streams]).median()
            if not len(inside) or inside.norm(dim=-1).median() < OUTLIER * usual:
                break
            if block.attention is not None:
                read = _normal(inside)
                rows[index] = read.double().mean(0)
                cosine = float(F.cosine_similarity(read, rows[index].float()[None]).mean())
                alike[f"block{index}"] = cosine
                if cosine < ALIKE:
                    raise _Unfit(f"sinks differ from image to image (cosine {cosine:.2f} in block {index})")
            streams = [block(x) for x in streams]
        if not rows:
            raise _Unfit("no attention reads them")
        return rows, alike

    def _least_used(
        self, dense: list[Tensor], before: list[Tensor], sinks: list[Tensor], rows: dict[int, Tensor]
    ) -> Tensor:
        """The direction [C] in which the streams that later attentions read vary least, sinks not being massive."""
        width = self.model.config.width
        moment = torch.zeros(width, width, dtype=torch.float64)
        columns = self.mlp.fc2.weight[:, self.units]
        streams = [x - F.gelu(self._units(y)) @ columns.T for x, y in zip(dense, before, strict=True)]
        for index in range(self.source + 1, max(rows) + 1):
            for x in streams:
                flat = _normal(x).flatten(0, 1)
                moment += (flat.T @ flat).double() / len(flat)
            streams = [self._step(index, x, s, rows) for x, s in zip(streams, sinks, strict=True)]
        # LayerNorm takes the vector of ones away: nothing may be marked along it.
        moment += moment.trace()
        return torch.linalg.eigh(moment).eigenvectors[:, 0].float()

    def _step(self, index: int, x: Tensor, sink: Tensor, rows: dict[int, Tensor]) -> Tensor:
        """The stream after block `index`, whose attention reads `sink` [B, N] of each token as the row."""
        block = self.blocks[index]
        if index not in rows or block.attention is None:
            return block(x)
        row = rows[index].float()
        read = (_normal(x) - row) * (1 - sink[..., None]) + row
        needed = x if block.queries is None else x[:, : block.queries]
        return block.feed_forward(needed + block.attention(read, block.queries))

    def _mark(self) -> None:
        """A marker takes the place of the massive units, which write nothing any more."""
        self.model.reconfigure(self.source, marker=True)
        marker, mlp, flag = self.blocks[self.source].norm2_marker, self.mlp, self.units[0]
        assert marker is not None
        self.marker = marker
        assign(marker.gate.weight, mlp.fc1.weight[flag] / (self.high - self.low))
        assign(marker.gate.bias, (mlp.fc1.bias[flag] - self.low) / (self.high - self.low))
        for unit in self.units:
            mlp.fc1.weight[unit], mlp.fc1.bias[unit], mlp.fc2.weight[:, unit] = 0, 0, 0

    def _install(self, before: list[Tensor], sinks: list[Tensor], rows: dict[int, Tensor]) -> bool:
        """Gives every block in `rows` its register, with a gate that separates marked tokens (Fisher's linear
        discriminant); False where one can't."""
        gates = {}
        streams = [self.blocks[self.source].feed_forward(x) for x in before]
        marked = torch.cat([s.flatten() for s in sinks])
        for index in range(self.source + 1, max(rows) + 1):
            if index in rows:
                read = torch.cat([_normal(x).flatten(0, 1) for x in streams]).double()
                inside, outside = read[marked == 1], read[marked == 0]
                spread = torch.cov(outside.T) + torch.cov(inside.T)
                spread.diagonal().add_(1e-3 * spread.diagonal().mean() + 1e-9)
                weight = torch.linalg.solve(spread, inside.mean(0) - outside.mean(0))
                score = read @ weight
                top, bottom = score[marked == 0].max(), score[marked == 1].min()
                gap = bottom - top
                spacing = (score[marked == 1].mean() - score[marked == 0].mean()) / 4
                if gap < spacing:
                    return False
                gates[index] = weight / (gap / 2), (bottom - gap / 4) / (gap / 2)
            streams = [self._step(index, x, s, rows) for x, s in zip(streams, sinks, strict=True)]
        for index, (weight, limit) in gates.items():
            self.model.reconfigure(index, register=True)
            norm, register = self.blocks[index].norm1, self.blocks[index].norm1_register
            assert norm is not None and register is not None
            assign(norm.bias, -rows[index])
            assign(register.row, rows[index])
            assign(register.gate.weight, -weight)
            assign(register.gate.bias, limit - weight @ rows[index])
        return True
