"""The plan of a search: candidates in the order in which they are tried, from one pass over the model. Loads torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vitedge import metrics, targets
from vitedge.bundle import Bundle
from vitedge.config import RunConfig
from vitedge.cost import store
from vitedge.cost.model import LatencyModel
from vitedge.cost.options import ProfileOptions
from vitedge.errors import VitedgeError
from vitedge.prune.hardware import aligned_for_target
from vitedge.prune.options import PruneOptions
from vitedge.prune.run import fewest_images
from vitedge.quant.options import QuantOptions
from vitedge.reporter import Reporter
from vitedge.search import quiet
from vitedge.search.evaluate import HeldOut, condition
from vitedge.search.folders import Folders
from vitedge.search.harm import Plan, measure_effects, sweep
from vitedge.search.options import SearchOptions, parse_range
from vitedge.search.predict import Predicted, SearchPlan, ordered, predict
from vitedge.search.space import DENSE, SPARES, Candidate, Pruning, settings, space, variants
from vitedge.steps.model import read_config
from vitedge.steps.source import float_batches, read_pixels, read_preprocess
from vitedge.vit.config import ViTConfig
from vitedge.vit.macs import model_macs

# Candidates that a plan keeps: more than any search measures.
MOST = 400
# Images that the noise of quantisation is measured with, and on.
NOISE_IMAGES = 64
# KL divergence (nats) that floats of 16 bits make, in order of magnitude: they are not measured.
FLOAT_NOISE = {"bf16": 1e-3, "fp16": 1e-5}


def make_plan(
    folders: Folders, base: RunConfig, options: SearchOptions, held: HeldOut, reporter: Reporter
) -> SearchPlan:
    """The plan of a search over the dense float run in `folders`. Raises VitedgeError."""
    bundle = Bundle.open(folders.dense)
    target = targets.get(options.target)
    dense = read_config(bundle, "source")
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.monotonic()
        found = work()
        seconds[name] = round(time.monotonic() - started, 1)
        return found

    fitted, (fewest, why) = bundle.facts("calib")["n"], fewest_images(dense)
    if fewest > fitted:
        images = fitted + len(held.pixels)
        raise VitedgeError(
            f"{images} calibration images are too few for a search.",
            f"{len(held.pixels)} of them are held out, and pruning needs {fewest} of the others. {why}",
            f"Give at least {math.ceil(images * fewest / fitted)} images; some hundred are better.",
        )
    tried = variants(target)
    latency = timed("latency", lambda: latency_models(dense, options, [v for v in tried if v[1] != "full"], reporter))
    if options.cost_kind == "p50-ms":
        tried = [(p, preset) for p, preset in tried if p in latency]
    for precision, preset in tried:
        if preset == "full" and precision in latency:
            latency.setdefault("int8-full", latency[precision])
    own = aligned_for_target(PruneOptions(prune_target=options.target, seed=base.calib.seed))
    everything = own.model_copy(update={"min_heads": 0, "min_hidden": 0})
    with quiet.working():
        effects = timed("effects", lambda: measure_effects(bundle, everything, reporter))
        ready = timed("condition", lambda: conditioned_dense(folders, base, options, tried, reporter))
        noise = timed("noise", lambda: quantisation_noise(ready, tried, base.quantize, held, reporter))

    low, high = parse_range(options.shares)
    ways = settings(timed=target.precisions[0] in latency, mergeable=not dense.unmergeable)
    planned: dict[Pruning, Plan] = {DENSE: Plan(dense, 0.0)}

    def all_predicted() -> tuple[int, list[Predicted]]:
        for unit, by, depth in ways:
            chosen = (everything if depth else own).model_copy(update={"prune_unit": unit, "prune_by": by})
            for plan in sweep(dense, effects, chosen, low, high):
                # Half of the time is often far more than half of the MACs, and all that the model knew.
                if 1 - model_macs(plan.config) / model_macs(dense) <= high:
                    planned[plan.asked, unit, by, depth] = plan
        spares = (0.0,) if target.presets else SPARES  # which a compiler that calibrates by itself knows nothing of
        candidates = space([one for one in planned if one != DENSE], tried, spares)
        kind, cycle_macs = options.cost_kind, target.cycle_macs
        return len(candidates), predict(candidates, planned, latency, noise, dense, kind, cycle_macs)

    with reporter.busy("predicting candidates"):
        considered, found = timed("predict", all_predicted)
    if not found:
        raise VitedgeError("No candidate can be predicted.", "", "Widen --shares, or choose another --budget.")
    budgets = [budget.most for budget in options.budgets]
    # What a preset of the compiler's own costs is not predicted: its dense model tells.
    order = ordered(found, options.points, budgets, options.max_drop, every_dense=bool(target.presets))[:MOST]
    labels = {name: model.label for name, model in latency.items()}
    return SearchPlan(order, considered, noise, labels, chosen_rotation(ready["linear"]), seconds)


def conditioned_dense(
    folders: Folders, base: RunConfig, options: SearchOptions, tried: list[tuple[str, str]], reporter: Reporter
) -> dict[str, Bundle]:
    """Preset -> the dense model ready for it, of those tried; where INT8 is not tried, "linear" is the float model."""
    found = {"linear": Bundle.open(folders.dense)}
    for precision, preset in sorted(tried, key=lambda one: one[1] == "full"):
        if not preset:
            continue
        candidate = Candidate(*DENSE, precision, preset)  # type: ignore[arg-type]
        if (rotation := chosen_rotation(found["linear"])) and base.condition.rotate == "auto":
            rotated = base.condition.model_copy(update={"rotate": rotation})
            base = base.model_copy(update={"condition": rotated})
        found[preset] = Bundle.open(condition(candidate, folders.dense, base, folders, options, reporter))
    return found


def chosen_rotation(bundle: Bundle) -> str | None:
    """The rotation that conditioning found to be the best of all for the dense model; None where it was not asked."""
    steps = bundle.facts("condition").get("steps", ())
    chosen = next((step["chosen"] for step in steps if step["name"] == "rotate"), None)
    kind = chosen.get("kind") if isinstance(chosen, dict) else None
    return None if kind == "off" else kind  # which asked for would leave out the centring too


def latency_models(
    dense: ViTConfig, options: SearchOptions, tried: list[tuple[str, str]], reporter: Reporter
) -> dict[str, LatencyModel]:
    """Variant -> its latency model: what this machine or the target knows; where it can be measured here, it is."""
    from vitedge.cost.profile import measurable, profile

    found = {}
    for precision, _ in tried:
        model = store.find(options.target, precision, options.platform, dense.width, options.threads)
        if model is None and measurable(targets.get(options.target)) and options.cost_kind == "p50-ms":
            own = ProfileOptions(
                target=options.target, precision=(precision,), plans=16, checks=4, threads=options.threads
            )
            try:
                with quiet.measuring():
                    model = profile(dense, own, reporter)[0].model
            except VitedgeError as error:  # a precision that this machine has no instructions for
                reporter.warn(f"{precision} is left out: {error.what}")
                continue
        if model is not None:
            found[precision] = model
    return found


def quantisation_noise(
    ready: Mapping[str, Bundle], tried: list[tuple[str, str]], given: QuantOptions, held: HeldOut, reporter: Reporter
) -> dict[str, float]:
    """Variant -> KL divergence that it makes of the dense model, on held-out images, simulated in float."""
    import torch

    from vitedge.quant import calibrate, simulate
    from vitedge.vit.checkpoint import read_model

    preprocess, pixels = read_preprocess(ready["linear"]), read_pixels(ready["linear"])
    assert pixels is not None
    models = {preset: read_model(bundle.path("model")).eval() for preset, bundle in ready.items()}
    images = float_batches(pixels[:NOISE_IMAGES], preprocess)
    activation = models["linear"].config.activation
    found = {}
    for precision, preset in tried:
        if not preset:
            found[precision] = FLOAT_NOISE.get(precision, 0.0)
            continue
        model = models[preset]
        options = given.model_copy(update={"preset": preset, "observer": "mse", "rounding": "nearest"})
        with reporter.busy(f"measuring what INT8 with the preset {preset} does to the logits"), torch.inference_mode():
            simulated = simulate(model, calibrate(model, images, options, preprocess), preprocess)
            parts = [simulated(x) for x in float_batches(held.pixels[:NOISE_IMAGES], preprocess)()]
            logits = torch.cat(parts).numpy()
        name = "int8-full" if preset == "full" else precision
        found[name] = float(metrics.kl(np.asarray(held.logits[:NOISE_IMAGES]), logits, activation))
    return found
