"""The whole run: every artifact opened, evaluated and timed, each in its own process."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.bench import accuracy, evaluate, host, memory, rounds, sustained
from vitedge.bench.jobs import Job, Settings, groups
from vitedge.bench.result import SCHEMA, new_row
from vitedge.bench.row import Artifact, Row, RowFailed
from vitedge.bench.source import Source, first_images
from vitedge.reporter import Reporter

Save = Callable[[dict[str, Any]], None]

_TIMING_IMAGES = 8


class Harness:
    """Runs jobs over a source. `work` keeps records and logs; `save` is called with the result so far."""

    def __init__(
        self,
        source: Source,
        work: Path,
        settings: Settings,
        *,
        reference: Artifact | None = None,
        preprocess: dict[str, Any] | None = None,
        host_name: str | None = None,
        reporter: Reporter | None = None,
        save: Save = lambda result: None,
    ) -> None:
        self.source, self.work, self.settings = source, work, settings
        self.reference_artifact, self.preprocess = reference, preprocess
        self.reporter, self.save = reporter or Reporter(), save
        self.host = host.facts(name=host_name)
        self.timing_pixels = first_images(source, _TIMING_IMAGES)
        self.multi_label = source.labels is not None and source.labels.ndim == 2

    def run(self, jobs: list[tuple[Artifact, dict[str, Any]]]) -> dict[str, Any]:
        """The bench JSON of these artifacts, each with what is known of it beforehand (see
        `result.new_row`)."""
        started = time.time()
        self.jobs = [Job(artifact, new_row(artifact, facts)) for artifact, facts in jobs]
        self.result: dict[str, Any] = {
            "schema": SCHEMA,
            "host": self.host,
            "data": self.source.facts(),
            "settings": vars(self.settings) | {"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started))},
            "reference": None,
            "rows": [job.row for job in self.jobs],
        }
        live = [job for job in self.jobs if job.row["status"] != "unavailable"]
        lookup, baseline = self._reference() if self.settings.accuracy and len(self.source) else (None, None)
        for job in live:
            self._measure(job, lookup, baseline)
            self.save(self.result)
        self._latency([job for job in live if job.timed])
        for device, after in (("jetson", host.jetson()), ("npu", host.npu())):
            if after is not None:
                # Temperatures, clocks and power after the last inference, beside those before the first.
                self.host[f"{device}_after"] = after
        self.result["data"] = self.source.facts()
        self.result["settings"]["seconds_taken"] = round(time.time() - started, 1)
        self.save(self.result)
        return self.result

    def _kept(self, artifact: Artifact, *, with_logits: bool) -> evaluate.Kept:
        return evaluate.Kept(self.work / f"{artifact.key}.rec", with_logits=with_logits)

    def _reference(self) -> tuple[evaluate.Reference | None, np.ndarray | None]:
        """The reference's logits by position and its own records: from the source, or by running it once."""
        if self.source.reference(np.arange(1)) is not None:
            return self.source.reference, None
        if self.reference_artifact is None:
            self.reporter.warn("There is no FP32 reference: agreement, SQNR and the paired difference are null.")
            return None, None
        kept = self._kept(self.reference_artifact, with_logits=True)
        try:
            with self._row(self.reference_artifact) as row, self._progress("FP32 reference") as advance:
                row.open(**self._open_options())
                done = self._limited(row, kept, None, advance)
                row.close()
        except RowFailed as failed:
            self.reporter.warn(f"The FP32 reference failed: {failed.reason}.")
            return None, None
        self.result["reference"] = {"artifact": self.reference_artifact.name} | accuracy.figures(done)
        return evaluate.kept_reference(kept), done

    def _progress(self, title: str) -> Any:
        return self.reporter.progress(title, len(self.source) or None)

    def _row(self, artifact: Artifact) -> Row:
        return Row(artifact, self.work / "logs" / f"{artifact.name}.log", timeout_s=self.settings.timeout_s)

    def _open_options(self) -> dict[str, Any]:
        s = self.settings
        cores = list(s.cores) if s.cores else None
        return {"threads": s.threads, "cores": cores, "memory_limit_mib": s.memory_limit_mib}

    def _limited(
        self, row: Row, kept: evaluate.Kept, lookup: evaluate.Reference | None, advance: Callable[[int], None]
    ) -> np.ndarray:
        limit = time.monotonic() + self.settings.row_limit_s

        def step(n: int) -> None:
            advance(n)
            if time.monotonic() > limit:
                raise RowFailed(f"stopped after {self.settings.row_limit_s:.0f} s; the next run goes on from there")

        return evaluate.evaluate(row, self.source, kept, lookup, step)

    def _measure(self, job: Job, lookup: evaluate.Reference | None, baseline: np.ndarray | None) -> None:
        """Cold start, memory and accuracy of one artifact, in a process of its own."""
        row = job.row
        try:
            with self._row(job.artifact) as process:
                opened = process.open(**self._open_options())
                simulator = opened["device"] == "simulator"
                row |= {name: opened[name] for name in ("device", "affinity", "versions")}
                row["batch"] = process.load(self.timing_pixels, self.settings.batch)["batch"]
                row["threads"] = self.settings.threads or len(opened["affinity"])
                if not simulator:
                    cold = process.ask("cold")
                    row["cold_start_ms"] = {"load": opened["load_ms"], "first": cold["first_ms"]}
                    row |= {"peak_rss_mib": cold["peak_rss_mib"], "base_rss_mib": opened["base_rss_mib"]}
                if self.settings.accuracy and len(self.source):
                    kept = self._kept(job.artifact, with_logits=self.multi_label)
                    with self._progress(job.artifact.name) as advance:
                        job.records = self._limited(process, kept, lookup, advance)
                    row["records"] = f"{kept.path.parent.name}/{kept.path.name}"
                    row |= accuracy.figures(job.records, self._same_images(baseline, job.records))
                    self._multi_label(row, kept, job.records)
                process.close()
            row["status"] = "ok"
        except RowFailed as failed:
            self._fail(job, failed.reason)

    def _same_images(self, baseline: np.ndarray | None, done: np.ndarray) -> np.ndarray | None:
        """The reference's records of the images that the row has; from a pack, made of the row's own
        records."""
        if baseline is not None:
            found = np.searchsorted(baseline["index"], done["index"])
            inside = found < baseline.size
            if inside.all() and np.array_equal(baseline["index"][found], done["index"]):
                return baseline[found]
            return None
        if done.size == 0 or (done["reference"] < 0).any():
            return None
        # Only whether the reference is right is asked of its records.
        out = done.copy()
        out["pred"] = out["reference"]
        out["rank"] = np.where(out["label"] < 0, -1, (out["reference"] != out["label"]).astype(np.int16))
        return out

    def _multi_label(self, row: dict[str, Any], kept: evaluate.Kept, done: np.ndarray) -> None:
        if not self.multi_label or done.size == 0 or self.source.labels is None:
            return
        targets = self.source.labels[done["index"]].astype(bool)
        row["map"] = accuracy.mean_average_precision(kept.logits(0, done.size), targets)
        if self.reference_artifact is not None and self.result["reference"]:
            other = self._kept(self.reference_artifact, with_logits=True)
            if np.array_equal(other.load()["index"], done["index"]):
                before = accuracy.mean_average_precision(other.logits(0, done.size), targets)
                self.result["reference"]["map"] = before
                if row["map"] is not None and before is not None:
                    row["delta_map"] = row["map"] - before

    def _fail(self, job: Job, reason: str) -> None:
        job.row |= {"status": "failed", "reason": reason}
        self.reporter.warn(f"{job.artifact.name}: {reason}")

    def _latency(self, jobs: list[Job]) -> None:
        """Times the artifacts in turns, in several launches; in groups, where they don't fit into memory
        together."""
        base = next((job for job in jobs if job.artifact.precision == "fp32"), jobs[0] if jobs else None)
        single = "single" in self.settings.scenarios
        launches = self.settings.launches if single else 1
        for group in groups(jobs, base, memory.available_mib()):
            timed = {job.artifact.name: rounds.Timed() for job in group}
            with self.reporter.progress("latency, in turns", launches) as advance:
                for launch in range(launches):
                    with ExitStack() as stack:
                        rows = self._launch(stack, [job for job in group if job.row["status"] == "ok"])
                        if single:
                            rounds.time_launch(rows, timed, self.settings.seconds, launches, advance)
                        for job in group:
                            if failure := timed[job.artifact.name].failure:
                                self._fail(job, f"latency: {failure}")
                        if launch == launches - 1:
                            self._take(group, timed, base)
                            self._rest(group, rows)
            self.save(self.result)

    def _launch(self, stack: ExitStack, group: list[Job]) -> dict[str, Row]:
        """New processes of the artifacts, ready to be timed."""
        rows: dict[str, Row] = {}
        for job in group:
            row = stack.enter_context(self._row(job.artifact))
            try:
                row.open(**self._open_options())
                row.load(self.timing_pixels, self.settings.batch)
                rows[job.artifact.name] = row
            except RowFailed as failed:
                self._fail(job, f"latency: {failed.reason}")
        return rows

    def _take(self, group: list[Job], timed: dict[str, rounds.Timed], base: Job | None) -> None:
        """The group's latencies and their ratios into the rows."""
        for job in group:
            found = timed[job.artifact.name]
            if job.row["latency_ms"] is None and not found.failure:
                job.row["latency_ms"], job.row["warm_up"] = found.latency_ms(), found.warm_up
            if base and base is not job and base.artifact.name in timed:
                compared = rounds.ratio(found, timed[base.artifact.name])
                job.row["latency_ratio"] = compared and {"to": base.artifact.name} | compared

    def _rest(self, group: list[Job], rows: dict[str, Row]) -> None:
        for job in group:
            if job.row["status"] == "ok":
                try:
                    self._alone(job.row, rows[job.artifact.name])
                except RowFailed as failed:
                    self._fail(job, f"latency: {failed.reason}")

    def _alone(self, row: dict[str, Any], process: Row) -> None:
        """What is measured of one artifact while the others rest."""
        s = self.settings
        files = [str(path) for path in self.source.files(_TIMING_IMAGES)]
        if "single" in s.scenarios:
            if files and self.preprocess and row["stages_ms"] is None:
                calls = int(np.clip(1000 / row["latency_ms"]["p50"], rounds.LEAST_CALLS, 100))
                row["stages_ms"] = process.ask("stages", files=files, preprocess=self.preprocess, calls=calls)
            if row["device_ms"] is None:
                row["device_ms"] = process.ask("device_times", calls=100)["device_ms"]
            if row["energy"] is None:
                row["energy"] = process.ask("energy", seconds=2.0)["energy"]
                row["energy_mj"] = row["energy"] and row["energy"]["mj_per_image"]
        if "throughput" in s.scenarios:
            answer = process.ask("throughput", seconds=s.seconds, contexts=s.contexts)
            row["throughput_ips"] = answer["images"] / answer["seconds"]
            row["throughput"] = answer | {"contexts": s.contexts, "batch": row["batch"]}
        if "sustained" in s.scenarios:
            row["sustained"] = sustained.sustain(process, s.sustained_s)
