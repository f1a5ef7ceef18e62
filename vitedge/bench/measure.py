"""`vitedge bench` as functions: a run folder or a pack in, the bench JSON out."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vitedge.bench import from_bundle, unpack
from vitedge.bench.golden.check import check_golden
from vitedge.bench.golden.judge import Judgement, advice
from vitedge.bench.groups import Job
from vitedge.bench.harness import Harness
from vitedge.bench.jobs import Settings
from vitedge.bench.result import BenchResult
from vitedge.bench.schema import Step
from vitedge.bench.source import Source
from vitedge.bundle import Bundle
from vitedge.data.classes import some
from vitedge.data.preprocess import Preprocess
from vitedge.data.texts import Texts, read_texts
from vitedge.errors import VitedgeError
from vitedge.host import facts as host
from vitedge.manifest import StepEntry
from vitedge.metrics import Activation
from vitedge.reporter import Reporter


@dataclass(frozen=True)
class BenchRequest:
    """What to measure: `only` names artifacts, targets or precisions (empty: all); `fresh` forgets earlier
    records; `command` is the line that was typed, for the report; `texts` a file of text embeddings."""

    only: tuple[str, ...] = ()
    data: str | None = None
    limit: int | None = None
    seed: int = 0
    fresh: bool = False
    host_name: str | None = None
    command: str = ""
    gate: str = ""
    texts: str | None = None


def bench_bundle(bundle: Bundle, request: BenchRequest, settings: Settings, reporter: Reporter) -> BenchResult:
    """Measures a run's artifacts; the result is also written to `bench/<host>.json` in it, row by row.

    An interrupted run is continued: images that an artifact has seen are not run again. Latencies are always new.
    """
    with bundle.lock():
        texts = _texts(request, from_bundle.find_activation(bundle))
        jobs = from_bundle.find_artifacts(bundle, request.only)
        from_bundle.need_runnable(jobs)
        names = texts.names if texts else None
        source = from_bundle.find_source(bundle, request.data, request.limit, request.seed, names)
        if settings.accuracy:
            _tell_about_data(source, reporter)
        return measure(
            jobs,
            source,
            bundle.root,
            request,
            settings,
            reporter,
            reference=from_bundle.find_reference(bundle),
            preprocess=from_bundle.find_preprocess(bundle),
            activation=from_bundle.find_activation(bundle),
            texts=texts,
            run=str(bundle.root),
            steps={name: _lineage(step) for name, step in bundle.manifest.steps.items()},
        )


def bench_pack(pack: Path, request: BenchRequest, settings: Settings, reporter: Reporter) -> BenchResult:
    """Measures a pack's artifacts; the result is also written to `bench/<host>.json` in its unpacked
    folder."""
    folder, index = unpack.unpack(pack)
    with locked(folder / ".lock", wait_s=30):
        packed = unpack.pack_jobs(folder, index)
        jobs = [one for one in packed if from_bundle.is_chosen(one.artifact.name, request.only)]
        from_bundle.need_runnable(jobs)
        source = unpack.PackSource(folder, index)
        if settings.golden:
            found = check_golden(folder, index, jobs, settings, reporter)
            for job in jobs:
                job.update(golden=found.get(job.artifact.name))
            for line in advice(found):
                reporter.warn(line)
        preprocess = Preprocess.from_dict(index.preprocess)
        activation = source.facts().activation
        texts = _texts(request, activation)
        if texts and tuple(source.names or ()) != texts.names:
            raise VitedgeError(
                "The classes of the pack are not those of the text embeddings.",
                f"The pack has {some(source.names or ['no names'])}, the file {some(texts.names)}.",
                "Give one with the names of the pack, in their order.",
            )
        return measure(
            jobs, source, folder, request, settings, reporter, preprocess=preprocess, activation=activation, texts=texts
        )


def check_pack(pack: Path, only: Sequence[str], settings: Settings, reporter: Reporter) -> dict[str, Judgement]:
    """Artifact -> what its golden references say on this machine; nothing is measured.

    Raises VitedgeError where the pack has none, or none of its artifacts runs here.
    """
    folder, index = unpack.unpack(pack)
    if index.golden is None:
        raise VitedgeError(f"'{pack}' has no golden references.", "", "Make it anew with `vitedge pack`.")
    with locked(folder / ".lock", wait_s=30):
        jobs = [one for one in unpack.pack_jobs(folder, index) if from_bundle.is_chosen(one.artifact.name, only)]
        from_bundle.need_runnable(jobs)
        return check_golden(folder, index, jobs, settings, reporter)


def _texts(request: BenchRequest, activation: Activation) -> Texts | None:
    """The text embeddings that were asked for. Raises VitedgeError where the model has classes of its own."""
    if request.texts is None:
        return None
    if activation != "none":
        raise VitedgeError(
            "--text-embeddings is for a model that gives embeddings.", "This one has classes.", "Leave it out."
        )
    return read_texts(request.texts)


@contextmanager
def locked(path: Path, wait_s: float) -> Iterator[None]:
    """Holds a lock file; a run whose link was cut may go on for some seconds, which are waited for."""
    with path.open("w") as file:
        for left in range(round(wait_s), -1, -1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if left == 0:
                    raise VitedgeError(
                        f"Another vitedge process is measuring in '{path.parent}'.",
                        "",
                        "Wait until it is done.",
                        exit_code=1,
                    ) from None
                time.sleep(1)
        yield


def measure(
    jobs: Sequence[Job],
    source: Source,
    root: Path,
    request: BenchRequest,
    settings: Settings,
    reporter: Reporter,
    *,
    reference: Job | None = None,
    preprocess: Preprocess | None = None,
    activation: Activation = "softmax",
    texts: Texts | None = None,
    run: str | None = None,
    steps: dict[str, Step] | None = None,
) -> BenchResult:
    """Runs the harness over the jobs with `root/bench` as its folder."""
    work = from_bundle.work_folder(root, source)
    if request.fresh:
        shutil.rmtree(work, ignore_errors=True)
    out = root / "bench" / f"{host.slug(host.facts(name=request.host_name))}.json"

    def known(result: BenchResult) -> BenchResult:
        return replace(result, run=run, command=request.command, steps=steps or {}, gate=request.gate)

    harness = Harness(
        source,
        work,
        settings,
        reference=reference,
        preprocess=preprocess,
        activation=activation,
        texts=texts,
        host_name=request.host_name,
        reporter=reporter,
        save=lambda result: known(result).write(out),
    )
    result = known(harness.run(list(jobs)))
    reporter.info(f"written: {out}")
    return result


def _lineage(step: StepEntry) -> Step:
    return Step(dict(step.options), step.seconds, dict(step.tools), step.key)


def _tell_about_data(source: Source, reporter: Reporter) -> None:
    facts = source.facts()
    if facts.path is None:
        reporter.warn("there is no data set: latency is measured on noise, accuracy is null (--data DIR)")
    elif facts.calibration:
        reporter.warn(
            f"accuracy is measured on the images that the model was calibrated on ({facts.path}): it flatters; "
            "name another data set with --data DIR"
        )
    if facts.path is not None and source.labels is None:
        reporter.warn("the data set has no labels: top-1 and top-5 are null, agreement with FP32 is measured")
