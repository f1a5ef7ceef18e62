"""`vitedge bench` as functions: a run folder or a pack in, the bench JSON out."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitedge.bench import from_bundle, host, unpack
from vitedge.bench.harness import Harness
from vitedge.bench.jobs import Settings
from vitedge.bench.row import Artifact
from vitedge.bench.source import Source
from vitedge.bundle import Bundle, StepEntry
from vitedge.errors import VitedgeError
from vitedge.files import write_json
from vitedge.reporter import Reporter


@dataclass(frozen=True)
class What:
    """What to measure: `only` names artifacts, targets or precisions (empty: all); `fresh` forgets earlier
    records; `command` is the line that was typed, for the report."""

    only: tuple[str, ...] = ()
    data: str | None = None
    limit: int | None = None
    seed: int = 0
    fresh: bool = False
    host_name: str | None = None
    command: str = ""


def bench_bundle(bundle: Bundle, what: What, settings: Settings, reporter: Reporter) -> dict[str, Any]:
    """Measures a run's artifacts; the result is also written to `bench/<host>.json` in it, row by row.

    An interrupted run is continued: images that a row has seen are not run again. Latencies are always new.
    """
    with bundle.lock():
        jobs = from_bundle.find_artifacts(bundle, what.only)
        from_bundle.need_runnable(jobs)
        source = from_bundle.find_source(bundle, what.data, what.limit, what.seed)
        preprocess = from_bundle.find_preprocess(bundle).to_dict()
        reference = from_bundle.find_reference(bundle)
        _tell_about_data(source, reporter)
        facts = {
            "run": str(bundle.root),
            "command": what.command,
            "classes": list(source.names) if source.names else None,
            "steps": {name: _lineage(step) for name, step in bundle.manifest.steps.items()},
        }
        return measure(jobs, source, bundle.root, what, settings, reporter, reference, preprocess, facts)


def bench_pack(pack: Path, what: What, settings: Settings, reporter: Reporter) -> dict[str, Any]:
    """Measures a pack's artifacts; the result is also written to `bench/<host>.json` in its unpacked
    folder."""
    folder, index = unpack.unpack(pack)
    with locked(folder / ".lock", wait_s=30):
        jobs = [one for one in unpack.pack_jobs(folder, index) if from_bundle.is_chosen(one[0], what.only)]
        from_bundle.need_runnable(jobs)
        source = unpack.PackSource(folder, index)
        return measure(
            jobs, source, folder, what, settings, reporter, None, index["preprocess"], {"command": what.command}
        )


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
    jobs: Sequence[tuple[Artifact, dict[str, Any]]],
    source: Source,
    root: Path,
    what: What,
    settings: Settings,
    reporter: Reporter,
    reference: Artifact | None,
    preprocess: dict[str, Any],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Runs the harness over the jobs with `root/bench` as its folder. `facts` are added to the result."""
    work = from_bundle.work_folder(root, source)
    if what.fresh:
        shutil.rmtree(work, ignore_errors=True)
    out = root / "bench" / f"{host.slug(host.facts(name=what.host_name))}.json"
    known = {key: value for key, value in facts.items() if key != "classes"}
    harness = Harness(
        source,
        work,
        settings,
        reference=reference,
        preprocess=preprocess,
        host_name=what.host_name,
        reporter=reporter,
        save=lambda result: write_json(out, result | known),
    )
    result = harness.run(list(jobs)) | known
    reporter.info(f"written: {out}")
    return result


def _lineage(step: StepEntry) -> dict[str, Any]:
    return step.model_dump(include={"options", "seconds", "tools", "key"})


def _tell_about_data(source: Source, reporter: Reporter) -> None:
    facts = source.facts()
    if facts["path"] is None:
        reporter.warn("there is no data set: latency is measured on noise, accuracy is null (--data DIR)")
    elif facts.get("calibration"):
        reporter.warn(
            f"accuracy is measured on the images that the model was calibrated on ({facts['path']}): it flatters; "
            "name another data set with --data DIR"
        )
    if facts["path"] is not None and source.labels is None:
        reporter.warn("the data set has no labels: top-1 and top-5 are null, agreement with FP32 is measured")
