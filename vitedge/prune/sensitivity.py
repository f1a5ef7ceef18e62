"""Agreement against the share removed: in total and layer by layer, so that a share is chosen knowingly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vitedge.errors import VitedgeError
from vitedge.moments import damping_for
from vitedge.prune.choose import AttentionCut, choices, count, decide, to_plan
from vitedge.prune.cut import plan_attention, plan_mlp
from vitedge.prune.fit import Fit
from vitedge.prune.hardware import aligned_for_target
from vitedge.prune.options import PruneOptions
from vitedge.prune.recover import Recovery, recover
from vitedge.prune.run import RIDGE_IMAGES, Look, check, look
from vitedge.prune.store import embed_all, parts, through
from vitedge.prune.surgery import assemble
from vitedge.reporter import Advance, Reporter
from vitedge.vit.architecture import Architecture
from vitedge.vit.model import Block

Batches = Callable[[], Iterator[Tensor]]
# Shares of a layer's own MACs that are tried on it alone.
OF_LAYER = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        layer: "total", or a half of a block such as "block3.mlp".
        removed: share of the whole model's MACs (or parameters) that is gone. of_layer: share of what that layer's
            cuts can save at most, None for "total".
        agreement: share of images that keep the dense model's class: closed form only, no gradient steps, on
            calibration images that nothing was solved on.
        predicted_kl: KL divergence of the logits that was expected, in nats.
    """

    layer: str
    removed: float
    of_layer: float | None
    agreement: float
    predicted_kl: float


@dataclass(frozen=True)
class Sensitivity:
    """All points, and on how many images they were solved and measured."""

    points: tuple[Point, ...]
    solved_on: int
    measured_on: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def sensitivity(
    model: Architecture,
    batches: Batches,
    options: PruneOptions,
    shares: Sequence[float],
    progress: Reporter | None = None,
) -> Sensitivity:
    """The curve over `shares`, as far as the constraints allow, and that of each half of each block alone.

    `options.prune` is not looked at; raises VitedgeError for too few images, and where no share can be met.
    """
    reporter = progress or Reporter()
    options = aligned_for_target(options)
    dense = copy.deepcopy(model).eval().requires_grad_(False)
    images = sum(len(x) for x in batches())
    check(dense, images, options)
    start = embed_all(dense, batches, 1, options.seed)
    with reporter.busy(f"measuring on {images} images what each cut would do to the logits"):
        seen = look(dense, start, options)
    held = start[seen.solved :]
    wanted = classes(dense, 0, held)
    with reporter.progress("pruning at each share: blocks", len(dense.blocks) * len(shares)) as advance:
        points = total(dense, start, seen, options, shares, wanted, advance)
    with reporter.progress("pruning each layer alone: blocks", len(dense.blocks)) as advance:
        points += each(dense, held, seen, options, wanted, advance)
    return Sensitivity(tuple(points), min(seen.solved, RIDGE_IMAGES), len(held))


def total(
    dense: Architecture,
    start: Tensor,
    seen: Look,
    options: PruneOptions,
    shares: Sequence[float],
    wanted: Tensor,
    advance: Advance,
) -> list[Point]:
    """One point a share."""
    solved = start[: seen.solved]
    how = Recovery("ridge", options.damping, RIDGE_IMAGES, Fit(0, 1, 1e-3))
    counted = count(options.prune_unit)
    found: list[Point] = []
    for share in sorted(shares):
        try:
            plans, predicted = decide(
                dense.config, seen.candidates, seen.effects, options.model_copy(update={"prune": share})
            )
        except VitedgeError:
            if not found:
                raise
            break
        small = copy.deepcopy(dense)
        recover(dense, small, plans, solved, how, options.seed, lambda n: advance(int(n == len(solved))))
        small = assemble(small)
        agreement = float((classes(small, 0, start[seen.solved :]) == wanted).float().mean())
        removed = 1 - counted(small.config) / counted(dense.config)
        found.append(Point("total", removed, None, agreement, predicted))
    return found


def each(
    dense: Architecture, held: Tensor, seen: Look, options: PruneOptions, wanted: Tensor, advance: Advance
) -> list[Point]:
    """Points of each half of each block, everything else dense."""
    found = []
    whole = count(options.prune_unit)(dense.config)
    x = held
    for index, block in enumerate(dense.encoder()):
        for ways in choices(dense.config, index, seen.effects[index], options):
            most = max(way.saved for way in ways)
            half = "attention" if isinstance(ways[0].cut, AttentionCut) else "mlp"
            for share in OF_LAYER:
                way = min((w for w in ways if w.saved >= share * most), key=lambda w: w.harm)
                cut = (way.cut, None) if half == "attention" else (None, way.cut)
                small = copy.deepcopy(dense)
                small.blocks[index] = cut_alone(block, seen, index, cut, options)
                agreement = float((classes(small, index, x) == wanted).float().mean())
                of_layer = way.saved / most if most else 0.0
                found.append(Point(f"block{index}.{half}", way.saved / whole, of_layer, agreement, way.harm))
        x = through(block, x)
        advance(1)
    return found


def cut_alone(block: Block, seen: Look, index: int, cut: tuple[Any, Any], options: PruneOptions) -> Block:
    """A copy of one block, cut and made up for on the dense model's moments."""
    new, stats = copy.deepcopy(block), seen.moments[index]
    plan = to_plan(block.config, seen.candidates[index], *cut)
    if stats.attention is not None:
        plan_attention(new, plan, stats.attention, True, damping_for(options.damping, stats.attention.context))
    if stats.hidden is not None:
        plan_mlp(new, plan, stats.hidden, True, damping_for(options.damping, stats.hidden))
    return new


@torch.no_grad()
def classes(model: Architecture, first: int, x: Tensor) -> Tensor:
    """The model's class of each image [I], from the streams before block `first` [I, N, C] on."""
    for index in range(first, len(model.blocks)):
        x = through(partial(model.run_block, index), x)
    return torch.cat([model.classify(part) for (part,) in parts(x)]).argmax(1)
