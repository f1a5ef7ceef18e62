"""Agreement against the share removed: in total and layer by layer, so that a share is chosen knowingly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from vitedge.errors import VitedgeError
from vitedge.moments import damping_for
from vitedge.prune.choose import AttentionCut, count, cut_config, decide, find_parts, to_plan
from vitedge.prune.cut import plan_attention, plan_mlp
from vitedge.prune.fit import Fit
from vitedge.prune.hardware import aligned_for_target
from vitedge.prune.measure import RIDGE_IMAGES, Measurement, measure_cuts
from vitedge.prune.options import PruneOptions
from vitedge.prune.plan import everything
from vitedge.prune.recover import Recovery, recover
from vitedge.prune.run import check
from vitedge.prune.store import embed_all, logits, through
from vitedge.prune.surgery import assemble
from vitedge.reporter import Advance, Reporter
from vitedge.tokens.constant import cluster
from vitedge.tokens.modules import TokenMerge
from vitedge.vit.architecture import Architecture
from vitedge.vit.block import Merge
from vitedge.vit.layers import Block, Site

Batches = Callable[[], Iterator[Tensor]]
# Shares of a layer's own MACs that are tried on it alone.
OF_LAYER = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        layer: "total", or a part of a block such as "block3.mlp", "block3.tokens".
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

    def to_dict(self) -> dict[str, object]:
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
        measured = measure_cuts(dense, start, options)
    held = start[measured.solved :]
    wanted = logits(dense, 0, held).argmax(1)
    with reporter.progress("pruning at each share: blocks", len(dense.blocks) * len(shares)) as advance:
        points = total(dense, start, measured, options, shares, wanted, advance)
    with reporter.progress("pruning each layer alone: blocks", len(dense.blocks)) as advance:
        points += each(dense, held, measured, options, wanted, advance)
    return Sensitivity(tuple(points), min(measured.solved, RIDGE_IMAGES), len(held))


def total(
    dense: Architecture,
    start: Tensor,
    measured: Measurement,
    options: PruneOptions,
    shares: Sequence[float],
    wanted: Tensor,
    advance: Advance,
) -> list[Point]:
    """One point a share."""
    solved = start[: measured.solved]
    how = Recovery("ridge", options.damping, RIDGE_IMAGES, Fit(0, 1, 1e-3), uncut=False)
    counted = count(dense.config, options)
    found: list[Point] = []
    for share in sorted(shares):
        try:
            plans, predicted = decide(
                dense.config, measured.candidates, measured.effects, options.model_copy(update={"prune": share})
            )
        except VitedgeError:
            if not found:
                raise
            break
        small = copy.deepcopy(dense)
        recover(
            dense,
            small,
            plans,
            solved,
            how,
            options.seed,
            lambda n: advance(int(n == len(solved))),
            constant=options.merge == "constant",
        )
        small = assemble(small)
        agreement = float((logits(small, 0, start[measured.solved :]).argmax(1) == wanted).float().mean())
        removed = 1 - counted(small.config) / counted(dense.config)
        found.append(Point("total", removed, None, agreement, predicted))
    return found


def each(
    dense: Architecture, held: Tensor, measured: Measurement, options: PruneOptions, wanted: Tensor, advance: Advance
) -> list[Point]:
    """Points of each half of each block, and of merging its tokens, everything else dense."""
    found = []
    counted = count(dense.config, options)
    whole, parts_of = counted(dense.config), find_parts(dense.config, measured.effects, options)
    x = held
    for index, block in enumerate(dense.encoder()):
        for part in (part for part in parts_of if part.index == index):
            ways = part.choices(dense.config.tokens)
            saved = [whole - counted(cut_config(dense.config, index, way.cut, options)) for way in ways]
            most = max(saved)
            for share in OF_LAYER:
                best = min((n for n in range(len(ways)) if saved[n] >= share * most), key=lambda n: ways[n].harm)
                small = copy.deepcopy(dense)
                small.blocks[index] = cut_alone(dense, block, measured, index, ways[best].cut, options)
                agreement = float((logits(small, index, x).argmax(1) == wanted).float().mean())
                of_layer = saved[best] / most if most else 0.0
                name = "tokens" if part.merges else "attention" if isinstance(ways[0].cut, AttentionCut) else "mlp"
                found.append(Point(f"block{index}.{name}", saved[best] / whole, of_layer, agreement, ways[best].harm))
        x = through(block, x)
        advance(1)
    return found


def cut_alone(
    dense: Architecture, block: Block, measured: Measurement, index: int, cut: Any, options: PruneOptions
) -> Block:
    """A copy of one block, cut and made up for on the dense model's moments."""
    new, stats = copy.deepcopy(block), measured.moments[index]
    if isinstance(cut, int):
        groups: tuple[int, ...] = ()
        if stats.distances is not None:
            groups = cluster(*stats.distances, cut, dense.config.prefix)
        new.merge = TokenMerge(Merge(cut, groups, matched=not groups), block.width, dense.config.prefix, Site())
        return new
    plan = to_plan(everything(block.config), block.config, measured.candidates[index], cut)
    if stats.attention is not None:
        plan_attention(new, plan, stats.attention, True, damping_for(options.damping, stats.attention.context))
    if stats.hidden is not None:
        plan_mlp(new, plan, stats.hidden, True, damping_for(options.damping, stats.hidden))
    return new
