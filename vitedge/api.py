"""Runs as objects: thin over the pipeline and the run folder. Imports no torch.

    run = vitedge.compress("vit_b_16", calib="images/", prune=0.3, quantize="static", run="my-run")
    run.build("onnxruntime", precision="int8")
    run.bench("val/")

A keyword is a flag of the command line with the same name and default; `help(vitedge.compress)` lists them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitedge import config as options
from vitedge.bundle import DEFAULT_RUN
from vitedge.config import takes_options
from vitedge.reporter import Reporter, WarningReporter
from vitedge.results import Analysis, Artifact, Pack, Predictions
from vitedge.run import Run

if TYPE_CHECKING:
    from vitedge.bench.golden.judge import Judgement
    from vitedge.bench.result import BenchResult
    from vitedge.cost.profile import Profile
    from vitedge.search.result import SearchResult
    from vitedge.steps.inspect import Inspection

__all__ = [
    "Analysis", "Artifact", "Pack", "Predictions", "Run",
    "bench_pack", "check_pack", "compress", "inspect", "open", "profile", "search",
]  # fmt: skip


@takes_options("compress")
def compress(
    model: str | Path | None = None,
    *,
    run: str | Path = DEFAULT_RUN,
    config: str | Path | None = None,
    reporter: Reporter | None = None,
    **keywords: Any,
) -> Run:
    """Everything from the checkpoint to the ONNX graphs, in the run folder `run`; what is up to date is kept.

    Raises VitedgeError for a wrong model, option or data set.
    """
    from vitedge import pipeline

    keywords = {**keywords, "model": model}
    settings = options.configure("compress", keywords, config)
    options.refuse_useless(keywords, settings)
    pipeline.compress(Path(run), settings, reporter or WarningReporter())
    return Run(run)


def open(run: str | Path = DEFAULT_RUN) -> Run:
    """An existing run. Raises VitedgeError where there is none."""
    return Run(run)


@takes_options("inspect")
def inspect(model: str | Path, *, config: str | Path | None = None, **keywords: Any) -> Inspection:
    """The layers of a model that is no run, as a table. Needs torch."""
    from vitedge.steps.inspect import inspect_model

    return inspect_model(options.configure("inspect", {**keywords, "model": model}, config).model)


@takes_options("search")
def search(
    model: str | Path | None = None,
    *,
    out: str | Path = "vitedge-search",
    config: str | Path | None = None,
    reporter: Reporter | None = None,
    **keywords: Any,
) -> SearchResult:
    """The front of models for a budget, in the folder `out`; a search that was interrupted goes on. Needs torch.

    Raises VitedgeError for a wrong option, too few images, a target that can't build here.
    """
    from vitedge.search.run import search as searched

    settings = options.configure("search", {**keywords, "model": model}, config)
    return searched(Path(out), settings, reporter or WarningReporter())


@takes_options("profile")
def profile(
    model: str | Path | None = None,
    *,
    run: str | Path = DEFAULT_RUN,
    config: str | Path | None = None,
    reporter: Reporter | None = None,
    **keywords: Any,
) -> list[Profile]:
    """Latency models for `model`'s widths, one for each precision, kept in the user's cache; of the run's source model
    where none is named. What is measured needs torch."""
    from vitedge.cost.profile import profile as profiled
    from vitedge.vit.config import ViTConfig

    chosen = options.configure("profile", keywords, config).profile
    if model is None:
        shape = ViTConfig.from_dict(Run(run).bundle.json("source/arch.json"))
    else:
        from vitedge.vit.checkpoint import load_model

        shape = load_model(str(model)).model.config
    return profiled(shape, chosen, reporter or WarningReporter())


@takes_options("bench")
def bench_pack(
    pack: str | Path,
    *,
    config: str | Path | None = None,
    reporter: Reporter | None = None,
    command: str = "",
    **keywords: Any,
) -> BenchResult:
    """Latency and accuracy of a pack's artifacts, on the board that it was brought to."""
    from vitedge.bench import measure

    chosen = options.configure("bench", keywords, config).bench
    return measure.bench_pack(Path(pack), chosen.request(command), chosen.settings(), reporter or WarningReporter())


def check_pack(pack: str | Path, *, reporter: Reporter | None = None) -> dict[str, Judgement]:
    """Artifact -> whether it computes on this machine what it did where the pack was made: equal, near, or wrong and
    then where and why. Raises VitedgeError where the pack has no golden references."""
    from vitedge.bench import measure
    from vitedge.bench.jobs import Settings

    return measure.check_pack(Path(pack), (), Settings(), reporter or WarningReporter())
