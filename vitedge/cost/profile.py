"""`vitedge profile`: a latency model of a target, fitted on this machine, or read from a board's or a vendor's profile.

A target that runs here is measured: plans around the model's own (other widths, other tokens, random weights) are
built and timed, and each kind of work gets its price (after the latency tables of arXiv 2407.05941, as a formula).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vitedge import documents, targets
from vitedge.cost import store
from vitedge.cost.fit import Errors, compare, fit
from vitedge.cost.model import LatencyModel
from vitedge.cost.options import ProfileOptions
from vitedge.cost.plans import draw_plans
from vitedge.cost.terms import model_terms
from vitedge.errors import VitedgeError
from vitedge.reporter import Reporter
from vitedge.targets.base import Target
from vitedge.vit.config import ViTConfig


@dataclass(frozen=True)
class Profile:
    """A latency model, the file that keeps it, and what the dense model takes by it and, where measured, in fact."""

    model: LatencyModel
    file: Path
    dense_ms: float
    measured_ms: float | None

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        known = {"file": str(self.file), "dense_ms": self.dense_ms, "measured_ms": self.measured_ms}
        return known | {"model": self.model.to_json()}


def profile(config: ViTConfig, options: ProfileOptions, reporter: Reporter) -> list[Profile]:
    """One for each precision, kept in the user's cache. Raises VitedgeError where the target has no way to tell.

    config: the dense model that plans are drawn around.
    """
    target = targets.get(options.target)
    found = []
    for name in options.precision or target.precisions[:1]:
        precision = name.partition("-")[0]
        if precision not in target.precisions or name not in (precision, "int8-full"):
            raise VitedgeError(
                f"The target '{target.name}' has no precision '{name}'.",
                "",
                f"Choose of: {', '.join(target.precisions)}{', int8-full' if 'int8' in target.precisions else ''}.",
            )
        text = documents.read_text(options.perf, todo="Check --perf.") if options.perf else None
        known = target.latency_model(name, options.platform, text) if text or not measurable(target) else None
        model, ms = (known, None) if known else _measured(config, target, name, options, reporter)
        found.append(Profile(model, store.keep(model, config.width), model.predict(config).ms, ms))
    return found


def measurable(target: Target) -> bool:
    probe = target.probe()
    return probe.can_build and probe.can_run and probe.device != "simulator"


def _measured(
    config: ViTConfig, target: Target, name: str, options: ProfileOptions, reporter: Reporter
) -> tuple[LatencyModel, float]:
    """The model fitted on this machine, and the dense model's measured latency."""
    if not measurable(target):
        probe = target.probe()
        raise VitedgeError(
            f"The target '{target.name}' can't be measured here.",
            probe.reason or "It runs in a simulator, which says nothing of its speed.",
            probe.fix or "Profile it on the board.",
            exit_code=1,
        )
    from vitedge.cost.measure import time_artifacts, write_plan

    precision, _, preset = name.partition("-")
    others = draw_plans(config, options.plans + options.checks - 1, options.seed, align=target.tiles[0])
    plans = [config, *others]
    with tempfile.TemporaryDirectory(prefix="vitedge-profile-") as folder:
        chosen, openers = target.Options(), []
        with reporter.progress(f"{target.name} {name}: building plans", len(plans)) as advance:
            for number, plan in enumerate(plans):
                place = Path(folder) / str(number)
                place.mkdir()
                path, metadata = write_plan(
                    plan, place, target, precision, "full" if preset == "full" else "linear", chosen
                )
                if number == 0:
                    chosen = target.settled(chosen, metadata)
                openers.append(partial(target.open, path, metadata, threads=options.threads))
                for graph in place.glob("*.onnx"):
                    graph.unlink()
                advance(1)
        with reporter.progress(f"{target.name} {name}: measuring, leave the machine alone", 3 * len(plans)) as advance:
            ms = time_artifacts(openers, config, advance)
    model, _ = fitted(plans, ms, options.checks, target.name, name, options)
    return model, ms[0]


def fitted(
    plans: list[ViTConfig], ms: list[float], checks: int, target: str, name: str, options: ProfileOptions
) -> tuple[LatencyModel, Errors]:
    """The model of measured plans; the last `checks` are not fitted to: they tell its error."""
    work = [model_terms(plan) for plan in plans]
    found = {str(kind): value for kind, value in fit(work[:-checks], ms[:-checks]).items()}
    model = LatencyModel(
        target=target,
        precision=name,
        platform=options.platform,
        threads=options.threads,
        coefficients=found,
        source=f"{len(plans) - checks} plans with random weights, built and timed on this machine.",
        plans=len(plans) - checks,
        host=store.host_facts(),
        versions=targets.get(target).probe().versions,
    )
    errors = compare([model.price(terms).ms for terms in work[-checks:]], ms[-checks:])
    update = {"error_median": errors.median, "error_most": errors.most, "rank_correlation": errors.rank_correlation}
    return model.model_copy(update=update), errors
