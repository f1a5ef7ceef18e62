"""The whole run: every artifact opened, evaluated and timed, each in its own process."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitedge.bench import accuracy, evaluate, records, rounds, sustained
from vitedge.bench.artifact import SOURCE, Artifact
from vitedge.bench.energy import Energy
from vitedge.bench.groups import Job, groups
from vitedge.bench.jobs import Settings
from vitedge.bench.process import ArtifactFailed, ArtifactProcess
from vitedge.bench.result import BenchResult
from vitedge.bench.schema import ColdStart, Row, Stages, Throughput
from vitedge.bench.source import Source, first_images
from vitedge.bench.stats import Summary
from vitedge.data.preprocess import Preprocess
from vitedge.data.texts import Texts
from vitedge.host import facts as host_facts
from vitedge.host.jetson import jetson_facts
from vitedge.host.memory import available_mib
from vitedge.host.npu import npu_facts
from vitedge.metrics import Activation
from vitedge.reporter import Advance, Reporter
from vitedge.workers import Message

Save = Callable[[BenchResult], None]

_TIMING_IMAGES = 8
_BATCH = 64
_OF_EMBEDDINGS = ("cosine_mean", "cosine_worst", "recall_at_5", "overlap_at_5", "knn_top1", "probe_top1")


class Harness:
    """Runs jobs over a source. `work` holds records and logs; `save` is called with the result so far.

    Args:
        reference: the model as it came, exported to FP32: the row that the others are held against.
        activation: "sigmoid" where the model gives several labels an image.
        texts: embeddings of the class names, for a model that gives embeddings.
    """

    def __init__(
        self,
        source: Source,
        work: Path,
        settings: Settings,
        *,
        reference: Job | None = None,
        preprocess: Preprocess | None = None,
        activation: Activation = "softmax",
        texts: Texts | None = None,
        host_name: str | None = None,
        reporter: Reporter | None = None,
        save: Save = lambda result: None,
    ) -> None:
        self.source, self.work, self.settings = source, work, settings
        self.reference, self.preprocess, self.activation = reference, preprocess, activation
        self.reporter, self.save = reporter or Reporter(), save
        self.host = host_facts.facts(name=host_name)
        self.timing_pixels = first_images(source, _TIMING_IMAGES)
        self.embeds, self.texts = activation == "none", texts
        self.multi_label = source.labels is not None and source.labels.ndim == 2
        self.evaluates = settings.accuracy and len(source) > 0
        self.jobs: list[Job] = []
        self.started = time.time()

    def run(self, jobs: list[Job]) -> BenchResult:
        """What was measured of these artifacts; the reference is the first row."""
        self.started = time.time()
        reference = self._packed_reference() if self.source.reference(np.arange(1)) is not None else self.reference
        self.jobs = [*([reference] if reference else []), *jobs]
        lookup, baseline = self._reference(reference)
        live = [job for job in jobs if job.row.status != "unavailable" and not job.row.reason]
        for job in live:
            self._measure(job, lookup, baseline)
            self.save(self.result())
        self._latency([job for job in ([reference] if reference else []) + live if job.timed])
        # Temperatures, clocks and power after the last inference, beside those before the first.
        self.host = replace(self.host, jetson_after=jetson_facts(), npu_after=npu_facts())
        found = replace(self.result(), seconds_taken=round(time.time() - self.started, 1))
        self.save(found)
        return found

    def result(self) -> BenchResult:
        """What has been measured so far."""
        reference = next((job for job in self.jobs if job.row.role == "source" and job.row.ok), None)
        return BenchResult(
            rows=tuple(job.row for job in self.jobs),
            host=self.host,
            data=replace(self.source.facts(), activation=self.activation, labels=self.source.labels is not None),
            settings=self.settings,
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            reference=reference.artifact.name if reference and self.evaluates else None,
        )

    def _file(self, artifact: Artifact, *, with_logits: bool) -> evaluate.RecordFile:
        return evaluate.RecordFile(self.work / f"{artifact.key}.rec", with_logits=with_logits)

    def _reference(self, job: Job | None) -> tuple[evaluate.Reference | None, np.ndarray | None]:
        """The reference's logits by position and its own records: from the source, or by running it once."""
        if job is None:
            if self.evaluates:
                self.reporter.warn("There is no FP32 reference: agreement, SQNR and the paired difference are null.")
            return None, None
        if not job.records.size and not job.row.ok:
            self._measure(job, None, None)
            if not job.row.ok:
                return None, None
        if not self.evaluates:
            return None, None
        if self.source.reference(np.arange(1)) is not None:
            return self.source.reference, job.records
        return evaluate.recorded_reference(self._file(job.artifact, with_logits=True)), job.records

    def _packed_reference(self) -> Job:
        """The source model's row out of the logits that came with the images: it has accuracy and no latency."""
        job = Job(Artifact(SOURCE, "", "fp32", Path(SOURCE)), Row(artifact=SOURCE, precision="fp32", role="source"))
        labels = None if self.multi_label else self.source.labels
        made = []
        for start in range(0, len(self.source) if self.evaluates else 0, _BATCH):
            at = np.arange(start, min(start + _BATCH, len(self.source)))
            logits = self.source.reference(at)
            assert logits is not None
            made.append(records.make(at, logits, None if labels is None else labels[at]))
        if made:
            job.records = np.concatenate(made)
            job.update(**vars(accuracy.figures(job.records)), by_image=accuracy.by_image(job.records))
        job.update(status="ok")
        return job

    def _progress(self, title: str) -> AbstractContextManager[Advance]:
        return self.reporter.progress(title, len(self.source) or None)

    def _process(self, artifact: Artifact) -> ArtifactProcess:
        log = self.work / "logs" / f"{artifact.name}.log"
        return ArtifactProcess(artifact, log, timeout_s=self.settings.timeout_s)

    def _open(self, process: ArtifactProcess) -> Message:
        s = self.settings
        cores = list(s.cores) if s.cores else None
        return process.open(threads=s.threads, cores=cores, memory_limit_mib=s.memory_limit_mib)

    def _limited(
        self,
        process: ArtifactProcess,
        file: evaluate.RecordFile,
        lookup: evaluate.Reference | None,
        advance: Advance,
    ) -> np.ndarray:
        limit = time.monotonic() + self.settings.row_limit_s

        def step(n: int) -> None:
            advance(n)
            if time.monotonic() > limit:
                limit_s = self.settings.row_limit_s
                raise ArtifactFailed(f"stopped after {limit_s:.0f} s; the next run goes on from there")

        return evaluate.evaluate(process, self.source, file, lookup, step, self.activation)

    def _measure(self, job: Job, lookup: evaluate.Reference | None, baseline: np.ndarray | None) -> None:
        """Cold start, memory and accuracy of one artifact, in a process of its own."""
        try:
            with self._process(job.artifact) as process:
                opened = self._open(process)
                job.update(device=opened["device"], affinity=tuple(opened["affinity"]), versions=opened["versions"])
                batch = process.load(self.timing_pixels, self.settings.batch)["batch"]
                job.update(batch=batch, threads=self.settings.threads or len(opened["affinity"]))
                if opened["device"] != "simulator":
                    cold = process.ask("cold")
                    job.update(
                        cold_start_ms=ColdStart(opened["load_ms"], cold["first_ms"]),
                        peak_rss_mib=cold["peak_rss_mib"],
                        base_rss_mib=opened["base_rss_mib"],
                    )
                if self.evaluates:
                    self._evaluate(job, process, lookup, baseline)
                process.close()
            job.update(status="ok")
        except ArtifactFailed as failed:
            self._fail(job, failed.reason)

    def _evaluate(
        self, job: Job, process: ArtifactProcess, lookup: evaluate.Reference | None, baseline: np.ndarray | None
    ) -> None:
        is_reference = job.row.role == "source"
        file = self._file(job.artifact, with_logits=is_reference or self.multi_label or self.embeds)
        with self._progress("the source model in FP32" if is_reference else job.artifact.name) as advance:
            job.records = self._limited(process, file, lookup, advance)
        digest = hashlib.sha256(job.records.tobytes()).hexdigest()
        expected = None if lookup is None or not self.embeds else lookup(job.records["index"])
        if self.embeds:
            job.records = accuracy.judge_embeddings(job.records, expected, file.logits(0, job.records.size))
        same = None if baseline is None else accuracy.on_same_images(job.records, baseline)
        job.update(
            **vars(accuracy.figures(job.records, same)),
            records=f"{file.path.parent.name}/{file.path.name}",
            records_sha256=digest,
            by_image=accuracy.by_image(job.records),
        )
        if self.embeds:
            self._judge_embeddings(job, file.logits(0, job.records.size), expected)
        if self.multi_label and not self.embeds and job.records.size and self.source.labels is not None:
            targets = self.source.labels[job.records["index"]].astype(bool)
            scores = file.logits(0, job.records.size)
            found = accuracy.multi_label(scores, targets)
            job.update(by_image=accuracy.by_image(job.records, ((scores > 0) == targets).all(1)))
            before = self.jobs[0].row.map if self.jobs[0].row.role == "source" else None
            delta = None if is_reference or found.map is None or before is None else found.map - before
            job.update(map=found.map, f1=found.f1, exact_match=found.exact_match, delta_map=delta)

    def _judge_embeddings(self, job: Job, embeddings: np.ndarray, expected: np.ndarray | None) -> None:
        labels = None if self.multi_label or self.source.labels is None else self.source.labels
        own = None if labels is None else labels[job.records["index"]]
        found = accuracy.embedded(job.records, embeddings, own, expected)
        job.update(**{name: getattr(found, name) for name in _OF_EMBEDDINGS})
        if self.texts is not None and own is not None and job.records.size:
            before = None if expected is None else self.texts.logits(expected)
            figures, one_by_one = accuracy.zero_shot(job.records, self.texts.logits(embeddings), own, before)
            job.update(**figures, by_image=one_by_one)

    def _fail(self, job: Job, reason: str) -> None:
        job.update(status="failed", reason=reason)
        self.reporter.warn(f"{job.artifact.name}: {reason}")

    def _latency(self, jobs: list[Job]) -> None:
        """Times the artifacts in turns, in several launches; in groups, where they don't fit into memory
        together."""
        base = next((job for job in jobs if job.artifact.precision == "fp32"), jobs[0] if jobs else None)
        single = "single" in self.settings.scenarios
        launches = self.settings.launches if single else 1
        for group in groups(jobs, base, available_mib()):
            timed = {job.artifact.name: rounds.Timed() for job in group}
            with self.reporter.progress("latency, in turns", launches) as advance:
                for launch in range(launches):
                    with ExitStack() as stack:
                        processes = self._launch(stack, [job for job in group if job.row.ok])
                        if single:
                            rounds.time_launch(processes, timed, self.settings.seconds, launches, advance)
                        for job in group:
                            if failure := timed[job.artifact.name].failure:
                                self._fail(job, f"latency: {failure}")
                        if launch == launches - 1:
                            self._take(group, timed, base)
                            self._rest(group, processes)
            self.save(self.result())

    def _launch(self, stack: ExitStack, group: list[Job]) -> dict[str, ArtifactProcess]:
        """New processes of the artifacts, ready to be timed."""
        processes: dict[str, ArtifactProcess] = {}
        for job in group:
            process = stack.enter_context(self._process(job.artifact))
            try:
                self._open(process)
                process.load(self.timing_pixels, self.settings.batch)
                processes[job.artifact.name] = process
            except ArtifactFailed as failed:
                self._fail(job, f"latency: {failed.reason}")
        return processes

    def _take(self, group: list[Job], timed: dict[str, rounds.Timed], base: Job | None) -> None:
        """The group's latencies and their ratios into the rows."""
        for job in group:
            found = timed[job.artifact.name]
            if job.row.latency_ms is None and not found.failure:
                job.update(latency_ms=found.latency_ms(), warm_up=found.warm_up)
            if base and base is not job and base.artifact.name in timed:
                job.update(latency_ratio=rounds.ratio(found, timed[base.artifact.name], base.artifact.name))

    def _rest(self, group: list[Job], processes: dict[str, ArtifactProcess]) -> None:
        for job in group:
            if job.row.ok:
                try:
                    self._alone(job, processes[job.artifact.name])
                except ArtifactFailed as failed:
                    self._fail(job, f"latency: {failed.reason}")

    def _alone(self, job: Job, process: ArtifactProcess) -> None:
        """What is measured of one artifact while the others rest."""
        s = self.settings
        files = [str(path) for path in self.source.files(_TIMING_IMAGES)]
        if "single" in s.scenarios:
            if files and self.preprocess and job.row.stages_ms is None and job.row.p50_ms:
                calls = int(np.clip(1000 / job.row.p50_ms, rounds.LEAST_CALLS, 100))
                found = process.ask("stages", files=files, preprocess=self.preprocess.to_dict(), calls=calls)
                job.update(stages_ms=Stages(**{name: Summary(**one) for name, one in found.items()}))
            if job.row.device_ms is None and (times := process.ask("device_times", calls=100)["device_ms"]):
                job.update(device_ms={name: Summary(**one) for name, one in times.items()})
            if job.row.energy is None and (drawn := process.ask("energy", seconds=2.0)["energy"]):
                job.update(energy=Energy(**drawn), energy_mj=drawn["mj_per_image"])
        if "throughput" in s.scenarios:
            answer = process.ask("throughput", seconds=s.seconds, contexts=s.contexts)
            done = Throughput(answer["images"], answer["seconds"], s.contexts, job.row.batch or 1)
            job.update(throughput=done, throughput_ips=done.images / done.seconds)
        if "sustained" in s.scenarios:
            job.update(sustained=sustained.sustain(process, s.sustained_s))
