"""One candidate, made and measured: its run folder, what it costs, and what it loses on held-out images."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from vitedge import documents, metrics, pipeline, targets
from vitedge.bench import from_bundle
from vitedge.bench.fleet import bench_fleet
from vitedge.bench.jobs import Settings
from vitedge.bench.measure import BenchRequest, bench_bundle
from vitedge.bench.schema import Row
from vitedge.bundle import Bundle
from vitedge.config import Layer, RunConfig
from vitedge.errors import VitedgeError
from vitedge.reporter import Reporter
from vitedge.search import quiet
from vitedge.search.folders import Folders, link_run
from vitedge.search.options import SearchOptions
from vitedge.search.space import Candidate
from vitedge.steps.build import folder_name
from vitedge.steps.model import read_config
from vitedge.vit.macs import model_macs

LAUNCHES = 3
# Held-out images that a simulator is given: each takes it a second.
SIMULATED = 64


@dataclass(frozen=True)
class Measured:
    """What is known of a candidate; None is a figure that was not measured.

    Attributes:
        run: its folder, relative to the search's, on `machine`; artifact: folder below its `build/`.
        sha256: of the artifact's files, without their metadata and log.
        agreement: with the model as it came, on `images` held-out images. lost: points of top-1 that the model's own
            probabilities say this costs; error: its standard error. kl: divergence of the logits, in nats.
        p50_ms: measured on `host` ("" for this machine). ratio: to the model as it came, in FP32 there.
        estimate_ms: of the latency model. cycles: the vendor's.
        macs_share: of the model as it came.
        seconds: stage -> what it took; a stage that another candidate had made takes nothing.
    """

    run: str
    artifact: str
    sha256: str
    accepted: bool | None
    agreement: float
    lost: float
    error: float
    kl: float | None
    images: int
    size_mib: float
    macs: int
    macs_share: float
    p50_ms: float | None = None
    ratio: float | None = None
    host: str = ""
    cycles: int | None = None
    estimate_ms: float | None = None
    predicted_ms: float | None = None
    predicted_kl: float | None = None
    machine: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    def cost(self, kind: str) -> float:
        """What a budget of that kind is held against. Raises VitedgeError where it was not measured."""
        value = {"cycles": self.cycles, "size-mib": self.size_mib, "p50-ms": self.p50_ms or self.estimate_ms}[kind]
        if value is None:
            raise VitedgeError(f"The candidate has no {kind}.", "", "Choose another kind of budget.", exit_code=1)
        return float(value)

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: object) -> Measured:
        """The inverse of `to_dict`. Raises VitedgeError where it is none."""
        return documents.validate(value, cls, "what was measured of a candidate")


@dataclass(frozen=True)
class HeldOut:
    """Images that nothing is fitted to, uint8 [n, H, W, C], and the logits of the model as it came, [n, classes]."""

    pixels: np.ndarray
    logits: np.ndarray


def make(
    candidate: Candidate, base: RunConfig, folders: Folders, options: SearchOptions, reporter: Reporter
) -> dict[str, float]:
    """Makes the candidate's run and its artifact; returns seconds by stage. Raises VitedgeError."""
    seconds: dict[str, float] = {}
    stage, run = folders.stage(candidate), folders.run(candidate)
    config = candidate.to_config(base, options.target)
    with quiet.working():
        started = time.monotonic()
        with folders.held(stage):
            link_run(folders.dense, stage)
            pipeline.compress(stage, candidate.to_config(base, options.target, "prune"), reporter)
        seconds["prune"] = time.monotonic() - started
        if candidate.preset:
            started = time.monotonic()
            stage = condition(candidate, stage, base, folders, options, reporter)
            seconds["condition"] = time.monotonic() - started
        with folders.held(run):
            started = time.monotonic()
            link_run(stage, run)
            pipeline.compress(run, config, reporter)
            seconds["quantise"] = time.monotonic() - started
    # A build may time forms of the graph on this machine; one for a simulator does not.
    times = targets.get(options.target).probe().device != "simulator"
    with folders.held(run), quiet.measuring() if times else quiet.working():
        started = time.monotonic()
        # Given again: a run keeps no options that name a program.
        own: Layer = {"build": config.build}
        pipeline.build(run, options.target, candidate.precision, options.platform, own, reporter)
        seconds["build"] = time.monotonic() - started
    return {name: round(value, 1) for name, value in seconds.items()}


def condition(
    candidate: Candidate, stage: Path, base: RunConfig, folders: Folders, options: SearchOptions, reporter: Reporter
) -> Path:
    """The conditioned run of the candidate's stage."""
    to = folders.conditioned(stage, candidate.preset)
    with folders.held(to):
        link_run(stage, to)
        pipeline.compress(to, candidate.to_config(base, options.target, "condition"), reporter)
    return to


def judge(candidate: Candidate, base: RunConfig, folders: Folders, options: SearchOptions, held: HeldOut) -> Measured:
    """What the candidate's artifact says of the held-out images, and what is known of its cost without timing it."""
    import torch

    from vitedge.quant.mixed import lost

    target, run = targets.get(options.target), folders.run(candidate)
    if target.probe().device == "simulator":
        held = HeldOut(held.pixels[:SIMULATED], held.logits[:SIMULATED])
    bundle = Bundle.open(run)
    platform = options.platform or (target.platforms[0] if target.platforms else None)
    attends = base.target_options(target.name).attends
    name = folder_name(target.name, candidate.precision, platform, attends=attends)
    job = from_bundle.read_artifact(bundle, name)
    with quiet.working():
        runner = target.open(job.artifact.path, dict(job.artifact.metadata), threads=options.threads)
        try:
            parts = range(0, len(held.pixels), 16)
            logits = np.concatenate([runner.infer(np.ascontiguousarray(held.pixels[i : i + 16])) for i in parts])
        finally:
            runner.close()
    activation = from_bundle.find_activation(bundle)
    agreement = metrics.agreement(held.logits, logits, activation)
    if activation == "softmax":
        points, error = lost(torch.from_numpy(held.logits), torch.from_numpy(logits), "top1")
    else:
        points, error = 100 * (1 - agreement), 100 * float(np.sqrt(agreement * (1 - agreement) / len(logits)))
    # Not what says when and how fast it was built.
    built = [path for path in bundle.files(f"build/{name}/") if not path.endswith(("/metadata.json", "/build.log"))]
    digests = "".join(bundle.manifest.artifacts[path].sha256 for path in built)
    config, source = read_config(bundle), read_config(bundle, "source")
    return Measured(
        run=run.relative_to(folders.root).as_posix(),
        artifact=name,
        sha256=hashlib.sha256(digests.encode()).hexdigest(),
        accepted=job.row.accepted,
        agreement=agreement,
        lost=points,
        error=error,
        kl=metrics.kl(held.logits, logits, activation),
        images=len(logits),
        size_mib=job.row.size_mib or 0.0,
        macs=model_macs(config),
        macs_share=model_macs(config) / model_macs(source),
        cycles=job.row.vendor_cycles,
    )


def time_here(candidate: Candidate, folders: Folders, options: SearchOptions, reporter: Reporter) -> Row | None:
    """The row of a short bench of the candidate's artifact beside the model as it came; None in a simulator."""
    target = targets.get(options.target)
    if target.probe().device == "simulator":
        return None
    settings = Settings(accuracy=False, seconds=options.seconds, launches=LAUNCHES, threads=options.threads)
    with folders.held(folders.run(candidate)), quiet.measuring():
        result = bench_bundle(Bundle.open(folders.run(candidate)), BenchRequest(), settings, reporter)
    return _row(result.rows, candidate)


def time_on(host: str, candidate: Candidate, folders: Folders, options: SearchOptions, reporter: Reporter) -> Row:
    """The same on a board over SSH. Raises VitedgeError where the board does not answer."""
    settings = Settings(accuracy=False, seconds=options.seconds, launches=LAUNCHES, threads=options.threads)
    with folders.held(folders.run(candidate)):
        found = bench_fleet(
            Bundle.open(folders.run(candidate)),
            None,
            [host],
            BenchRequest(),
            settings,
            reporter,
            ssh=options.ssh.split(),
            python=options.remote_python,
        )
    return _row(found[host].rows, candidate)


def _row(rows: tuple[Row, ...], candidate: Candidate) -> Row:
    row = next((one for one in rows if one.role == "artifact"), None)
    if row is None or not row.ok or row.p50_ms is None:
        reason = row.reason if row else "there is no row of it"
        raise VitedgeError(f"'{candidate}' could not be measured.", reason, "See its log.", exit_code=1)
    return row
