"""What candidates will cost and lose, before any is made: thousands of them in seconds. Imports no torch.

Harm adds up: that of pruning from the effects of its cuts, that of quantisation from the dense model quantised once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from vitedge import documents
from vitedge.cost.model import LatencyModel
from vitedge.search.front import front_of
from vitedge.search.harm import Plan
from vitedge.search.options import Kind
from vitedge.search.space import Candidate, Pruning
from vitedge.vit.config import ViTConfig
from vitedge.vit.macs import model_macs, model_params

# Of the harm that the effects add up to, what the closed form and the fit of blocks leave: an assumption, which ranks
# pruning against quantisation and changes nothing among candidates of one precision.
RECOVERED = 0.5
# What a share of the MACs that is spared from INT8 costs: an operation of it takes so many times as long. And which
# part of the noise a share takes along: the worst inputs go first. Assumptions too.
SPARED_TIME, SPARED_NOISE = 3.0, 4.0
# Points of top-1 that go with a nat of divergence (0.04 .. 0.35 of a pruned ViT-Ti/16), and how many times what may be
# lost a candidate may be predicted to lose before it is tried after all others.
POINTS_PER_NAT, HOPELESS = 22.0, 10.0
# Bytes of a parameter; in INT8, what stays in float (biases, LayerNorm, scales) included.
BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.06}


@dataclass(frozen=True)
class Predicted:
    """A candidate with its predicted cost (of the budget's kind), latency where it is known, KL divergence (nats) and
    share of the dense model's MACs."""

    candidate: Candidate
    cost: float
    ms: float | None
    kl: float
    macs_share: float


@dataclass(frozen=True)
class SearchPlan:
    """Candidates in their order, and what was looked at.

    Attributes:
        considered: how many candidates were predicted.
        noise: variant -> KL divergence of the dense model in it, in nats.
        latency: variant -> what its latency model says of itself.
        rotation: what all candidates are rotated by: conditioning tries the ways on the dense model alone.
        seconds: stage -> time.
    """

    candidates: list[Predicted]
    considered: int
    noise: dict[str, float]
    latency: dict[str, str]
    rotation: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def latency_source(self) -> str:
        """What all of the latency models say of themselves."""
        return "; ".join(sorted(set(self.latency.values())))

    def facts(self) -> dict[str, object]:
        """What was looked at, as JSON holds it."""
        return {
            "considered": self.considered,
            "noise": self.noise,
            "latency": self.latency,
            "rotation": self.rotation,
            "latency_source": self.latency_source,
            "seconds": self.seconds,
        }

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return {"candidates": [asdict(one) for one in self.candidates]} | self.facts()

    @classmethod
    def from_dict(cls, value: object) -> SearchPlan:
        """The inverse of `to_dict`. Raises VitedgeError where it is no plan."""
        return documents.validate(value, cls, "the plan of the search")


def predict(
    candidates: Sequence[Candidate],
    plans: Mapping[Pruning, Plan],
    latency: Mapping[str, LatencyModel],
    noise: Mapping[str, float],
    dense: ViTConfig,
    kind: Kind,
    cycle_macs: Mapping[str, int] | None = None,
) -> list[Predicted]:
    """All candidates whose cost is known; two that compute the same count once.

    plans: of every pruning. latency, noise: by variant (see `Candidate.variant`). cycle_macs: by precision, how many
    MACs the vendor counts as a cycle.
    """
    found: dict[tuple[ViTConfig, str, float], Predicted] = {}
    whole = model_macs(dense)
    for candidate in candidates:
        plan = plans[candidate.share, candidate.unit, candidate.by, candidate.depth]
        config = plan.config
        model = latency.get(candidate.variant)
        ms = model.predict(config).ms if model else None
        macs = model_macs(config)
        kl = RECOVERED * plan.harm + noise.get(candidate.variant, 0.0) * (1 - SPARED_NOISE * candidate.spare)
        size = BYTES[candidate.precision] * model_params(config) / 2**20
        slower = 1 + SPARED_TIME * candidate.spare
        in_a_cycle = (cycle_macs or {}).get(candidate.precision)
        cycles = macs / in_a_cycle if in_a_cycle else None
        cost = {"p50-ms": ms * slower if ms else None, "cycles": cycles, "size-mib": size}[kind]
        if cost is None:
            continue
        one = Predicted(candidate, cost, ms, kl, macs / whole)
        same = config, candidate.variant, candidate.spare
        if same not in found or one.kl < found[same].kl:
            found[same] = one
    return list(found.values())


def ordered(
    predicted: Sequence[Predicted],
    points: int,
    budgets: Sequence[float],
    max_drop: float = math.inf,
    *,
    every_dense: bool = False,
) -> list[Predicted]:
    """All candidates in the order in which they are tried: any beginning of it is a front spread over the costs.

    First the dense model in each precision, which is soon made and tells what predicted costs are worth, and the
    candidate that each budget asks for; then the front from both ends inwards, then the fronts behind it; last what
    would lose many times `max_drop` points of top-1. every_dense: also those that another one is predicted to beat.
    """
    dense = [one for one in predicted if not (one.candidate.share or one.candidate.spare)]
    found = sorted(dense if every_dense else _front(dense), key=lambda one: one.cost)
    found += [one for one in _spread(_front(predicted), 0, budgets=budgets) if one not in found]
    taken = {one.candidate.key for one in found}
    rest = [one for one in predicted if one.candidate.key not in taken]
    most = HOPELESS * max(max_drop, 0.5) / POINTS_PER_NAT
    found += _fronts([one for one in rest if one.kl <= most], points, found)
    return found + _fronts([one for one in rest if one.kl > most], points, ())


def aimed(line: Sequence[Predicted], costs: Mapping[str, float], unmet: Sequence[float]) -> list[Predicted]:
    """The line, and at its head for each budget that nothing meets the candidate that should lose least within it.

    What candidates are predicted to cost is corrected by what those of the same variant did. None that should lose more
    than one that was measured within the budget already: it would not meet it either.

    Args:
        costs: key of a candidate -> its cost, of those that were measured.
        unmet: budgets.
    """
    known = {one.candidate.key: one for one in line}
    off: dict[str, list[float]] = {}
    for key in costs.keys() & known.keys():
        off.setdefault(known[key].candidate.variant, []).append(costs[key] / known[key].cost)
    correction = {variant: median(ratios) for variant, ratios in off.items()}
    usual = median(list(correction.values())) if correction else 1.0
    head: list[Predicted] = []
    for budget in unmet if correction else ():
        least = min((one.kl for key, one in known.items() if costs.get(key, math.inf) <= budget), default=math.inf)
        within = [
            one
            for key, one in known.items()
            if key not in costs and one.kl < least
            if one.cost * correction.get(one.candidate.variant, usual) <= budget
        ]
        head += [min(within, key=lambda one: one.kl)] if within else []
    return [*dict.fromkeys([*head, *line])]


def _fronts(rest: Sequence[Predicted], points: int, beside: Sequence[Predicted]) -> list[Predicted]:
    """All of them: their front, `points` of it and far from `beside`, then the front of what is left."""
    out: list[Predicted] = []
    while rest:
        spread = _spread(_front(rest), points if not out else max(2, points // 2), () if out else beside)
        out += spread
        taken = {one.candidate.key for one in spread}
        rest = [one for one in rest if one.candidate.key not in taken]
    return out


def _front(predicted: Sequence[Predicted]) -> list[Predicted]:
    return front_of(predicted, cost=lambda one: one.cost, loss=lambda one: one.kl)


def _spread(
    front: Sequence[Predicted], count: int, beside: Sequence[Predicted] = (), budgets: Sequence[float] = ()
) -> list[Predicted]:
    """For each budget the front's candidate just within it, and until there are `count` others of the front, far apart
    and from `beside` in the logarithm of their cost."""
    chosen: list[Predicted] = []
    for budget in budgets:
        within = [one for one in front if one.cost <= budget and one not in chosen]
        chosen += [max(within, key=lambda one: one.cost)] if within else []
    left = [one for one in front if one not in chosen]
    while left and len(chosen) < count:
        near = [*beside, *chosen]
        pick = max(left, key=lambda one: (_apart(one, near), -one.kl)) if near else max(left, key=lambda one: one.cost)
        chosen.append(pick)
        left.remove(pick)
    return chosen


def _apart(one: Predicted, others: Sequence[Predicted]) -> float:
    return min(abs(math.log(one.cost / other.cost)) for other in others)
