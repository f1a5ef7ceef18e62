"""`vitedge search`: plan once, then make and measure candidate after candidate, with any number of other workers."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Queue

import numpy as np

from vitedge import pipeline, targets
from vitedge.bench.schema import Row
from vitedge.bundle import Bundle
from vitedge.config import RunConfig
from vitedge.cost import store
from vitedge.data.dataset import Dataset
from vitedge.data.sample import load_pixels, sample
from vitedge.errors import VitedgeError
from vitedge.files import atomic_path, make_folder
from vitedge.prune import measure
from vitedge.prune.options import PruneOptions
from vitedge.quant.options import QuantOptions
from vitedge.reporter import Reporter
from vitedge.search import finish
from vitedge.search.claims import Claim, Claims, open_study
from vitedge.search.evaluate import HeldOut, Measured, judge, make, time_here, time_on
from vitedge.search.folders import Folders
from vitedge.search.options import SearchOptions
from vitedge.search.plan import make_plan
from vitedge.search.predict import Predicted, SearchPlan, aimed
from vitedge.search.result import FILE, Point, SearchResult, steadied
from vitedge.search.space import DENSE, Candidate
from vitedge.search.told import Once
from vitedge.steps.export import FLOAT32, run_graph
from vitedge.steps.model import read_config
from vitedge.steps.source import open_calibration, read_preprocess

# Images without which neither a compression nor a judgement means anything.
FEWEST = 16


def search(root: Path, config: RunConfig, reporter: Reporter | None = None) -> SearchResult:
    """Searches in the folder `root` until the time, the trials or the candidates are used up; what a study has is gone
    on with. Ctrl-C ends it with what there is.

    Raises VitedgeError for a wrong option, too few images, or a target that can't build here.
    """
    return _Worker(root, config, reporter or Reporter()).run()


@dataclass
class _Host:
    """A board, and how often it has failed."""

    name: str
    failures: int = 0


class _Worker:
    def __init__(self, root: Path, config: RunConfig, reporter: Reporter) -> None:
        self.root, self.reporter, self.options = root, reporter, config.search
        self.steps = Once(reporter)
        self.started = time.monotonic()
        self.target = targets.get(self.options.target)
        _check(self.options)
        dataset = open_calibration(config.calib.of(config.calib.calib))
        fitted, self.held_images = _split(dataset, config, self.options.held_out)
        # Without conditioning's and the presets' own answers: each candidate brings those.
        calib = config.calib.model_copy(update={"calib_size": fitted})
        own = {name: values for name, values in config.build.items() if name == self.options.target}
        self.base = RunConfig(
            model=config.model,
            calib=calib,
            condition=config.condition,
            prune=self._pruning(config),
            quantize=self._quantize(config),
            build=own,
        )
        self.folders = Folders(make_folder(root))
        self.hosts: Queue[_Host] = Queue()
        for name in self.options.host:
            self.hosts.put(_Host(name))
        self.longest = 0.0
        self.begun = 0
        self.failed: dict[str, str] = {}
        self.plan: SearchPlan | None = None

    def _pruning(self, config: RunConfig) -> PruneOptions:
        return config.prune.model_copy(update={"prune": None, "recover": self.options.recover})

    def _quantize(self, config: RunConfig) -> QuantOptions:
        """With weights of as many bits as this machine's kernels multiply exactly, where it measures and nothing else
        was asked for."""
        given, bits = config.quantize, self.target.weight_bits()
        if self.options.host or "weight_bits" in given.model_fields_set or bits >= given.weight_bits:
            return given
        self.reporter.info(f"INT8 weights have {bits} bits: with more, this CPU's sums of two products saturate")
        return given.model_copy(update={"weight_bits": bits})

    def run(self) -> SearchResult:
        bundle = self._dense()
        held = self._held_out(bundle)
        storage = self.options.storage or f"sqlite:///{(self.root / 'study.db').resolve()}"
        self.claims = Claims(open_study(storage, self.options.study, self.options.cost_kind))
        self._identify(bundle, storage)
        try:
            plan = self._plan(held)
            with measure.remembered():
                self._work(plan, held)
        except KeyboardInterrupt:
            self.reporter.warn("interrupted: the front holds what was measured until now")
        return self._finish()

    # What comes before any candidate.

    def _dense(self) -> Bundle:
        with self.folders.held(self.folders.dense):
            dense = Candidate(*DENSE, "fp32").to_config(self.base, self.options.target, "prune")
            return pipeline.compress(self.folders.dense, dense, self.reporter)

    def _held_out(self, bundle: Bundle) -> HeldOut:
        """Images that nothing is fitted to, and what the model as it came says of them."""
        key = hashlib.sha256((self.held_images.sha256() + str(len(self.held_images))).encode()).hexdigest()[:12]
        source = bundle.manifest.artifacts["source/model.safetensors"].sha256[:12]
        pixels, logits = (self.root / "held-out" / name for name in (f"{key}.npy", f"{key}-{source}.npy"))
        with self.folders.held(self.root / "held-out" / "pixels"):
            if not pixels.is_file():
                self.reporter.info(f"reading {len(self.held_images)} images that candidates are judged on")
                load_pixels(self.held_images, read_preprocess(bundle), None, 0, pixels)
            found = np.load(pixels, mmap_mode="r")
            if not logits.is_file():
                graph = "onnx/reference.onnx" if bundle.has("onnx/reference.onnx") else FLOAT32
                with atomic_path(logits) as part:
                    np.save(part, run_graph(bundle.verified(graph), found))
        return HeldOut(found, np.load(logits))

    def _identify(self, bundle: Bundle, storage: str) -> None:
        """A study is of one model, one set of images, one target and one kind of cost."""
        o = self.options
        recipe: list[object] = [bundle.manifest.artifacts["source/model.safetensors"].sha256, self.held_images.sha256()]
        recipe += [o.target, o.platform, o.cost_kind, o.shares, o.recover, o.search_seed, self.base.calib.calib_size]
        recipe += [self.base.build] if self.base.build else []
        recipe += [self.base.quantize.model_dump()] if self.base.quantize != QuantOptions() else []
        own = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
        known = self.claims.shared("identity")
        if known not in (None, own):
            raise VitedgeError(
                f"The study '{o.study}' is of another search.",
                f"In {storage} there are results of another model, other images, another target, other build options "
                "or another kind of budget.",
                "Name another with --study, or search in another folder.",
            )
        if known is None:
            self.claims.share("identity", own)

    def _plan(self, held: HeldOut) -> SearchPlan:
        """The plan that all workers share: that of the one who wrote first."""
        with self.folders.held(self.root / "plan"):
            if self._shared_plan() is None:
                made = make_plan(self.folders, self.base, self.options, held, self.reporter)
                self.claims.share(f"plan {time.time():.3f} {self.claims.worker}", made.to_dict())
        plan = self._shared_plan()
        assert plan is not None
        self.plan = plan
        if plan.rotation and self.base.condition.rotate == "auto":
            rotated = self.base.condition.model_copy(update={"rotate": plan.rotation})
            self.base = self.base.model_copy(update={"condition": rotated})
        self.reporter.info(f"{plan.considered:,} candidates predicted; {len(plan.candidates)} are in line")
        return plan

    def _shared_plan(self) -> SearchPlan | None:
        """The plan of the worker that wrote first."""
        written = self.claims.study.user_attrs
        first = min((name for name in written if name.startswith("plan ")), default=None)
        return None if first is None else SearchPlan.from_dict(written[first])

    # Candidates.

    def _work(self, plan: SearchPlan, held: HeldOut) -> None:
        line = plan.candidates[: self.options.trials]
        candidates = [one.candidate for one in line]
        predicted = {one.candidate.key: one for one in line}
        with ThreadPoolExecutor(max(1, self.hosts.qsize())) as pool:
            waiting: list[Future[None]] = []
            try:
                while not self._late():
                    while len([one for one in waiting if not one.done()]) > len(self.options.host):
                        time.sleep(0.1)
                    claim = self.claims.claim(self._aimed(line))
                    if claim is None:
                        idle = all(one.done() for one in waiting) and not self.claims.running()
                        if idle or not self.claims.open(candidates):
                            break
                        time.sleep(1.0)
                        continue
                    self._begin(claim, predicted[claim.candidate.key], held, pool, waiting)
            finally:
                for future in waiting:
                    future.result()

    def _aimed(self, line: list[Predicted]) -> list[Candidate]:
        """The line with what the budgets need next at its head, by what all workers have measured until now."""
        result, kind = self._result(), self.options.cost_kind
        unmet = [budget.most for budget in self.options.budgets if result.best.get(str(budget)) is None]
        costs = {point.candidate.key: point.measured.cost(kind) for point in result.points}
        return [one.candidate for one in aimed(line, costs, unmet)]

    def _late(self) -> bool:
        left = 60 * self.options.minutes - (time.monotonic() - self.started)
        return left < self.longest + self._reserve()

    def _reserve(self) -> float:
        """Seconds for the last step, where the front is benched."""
        return min(0.2 * 60 * self.options.minutes, 25.0 * self.options.points) if self.options.data else 5.0

    def _begin(
        self,
        claim: Claim,
        predicted: Predicted,
        held: HeldOut,
        pool: ThreadPoolExecutor,
        waiting: list[Future[None]],
    ) -> None:
        """Makes and judges the candidate; it is timed here at once, or on a board meanwhile."""
        candidate, stack = claim.candidate, ExitStack()
        stack.enter_context(self.claims.beating(claim))
        started = time.monotonic()
        self.begun += 1
        self.reporter.info(f"candidate {self.begun}: {candidate}")
        try:
            seconds = make(candidate, self.base, self.folders, self.options, self.steps)
            measured = replace(
                judge(candidate, self.base, self.folders, self.options, held),
                machine=socket.gethostname(),
                predicted_ms=predicted.ms,
                predicted_kl=predicted.kl,
            )
            seconds["judge"] = round(time.monotonic() - started - sum(seconds.values()), 1)
            measured = replace(measured, seconds=seconds)
            if self.options.host:
                waiting.append(pool.submit(self._on_a_board, claim, measured, stack))
                return
            row = None
            if self.options.cost_kind == "p50-ms":
                row = time_here(candidate, self.folders, self.options, self.steps)
            self._done(claim, self._timed(measured, row, ""))
        except VitedgeError as error:
            self._give_up(claim, error)
        except BaseException:
            self.claims.release(claim)
            stack.close()
            raise
        stack.close()
        self.longest = max(self.longest, time.monotonic() - started)

    def _on_a_board(self, claim: Claim, measured: Measured, stack: ExitStack) -> None:
        """Times it on the next board that is free. One that fails costs its own time alone: another one takes over."""
        with stack:
            while True:
                host = self.hosts.get()
                if host.failures > 1:  # the last board has gone
                    self.hosts.put(host)
                    self.claims.release(claim)
                    return
                try:
                    row = time_on(host.name, claim.candidate, self.folders, self.options, self.steps)
                except VitedgeError as error:
                    host.failures += 1
                    self.reporter.warn(f"{host.name}: {error.what} {error.why}".strip())
                    if host.failures > 1:
                        self.reporter.warn(f"{host.name} is left out from now on")
                    if host.failures < 2 or self.hosts.empty():
                        self.hosts.put(host)
                    continue
                host.failures = 0
                self.hosts.put(host)
                self._done(claim, self._timed(measured, row, host.name))
                return

    def _timed(self, measured: Measured, row: Row | None, host: str) -> Measured:
        if row is not None:
            ratio = row.latency_ratio.ratio if row.latency_ratio else None
            return replace(measured, p50_ms=row.p50_ms, ratio=ratio, host=host)
        config = read_config(Bundle.open(self.root / measured.run))
        precision = measured.artifact.split("-")[1]
        model = store.find(self.options.target, precision, self.options.platform, config.width)
        return replace(measured, estimate_ms=model.predict(config).ms if model else None)

    def _done(self, claim: Claim, measured: Measured) -> None:
        self.claims.finish(claim, (measured.cost(self.options.cost_kind), measured.agreement), measured.to_dict())
        with self.folders.held(self.root / FILE):  # or an older view of another worker could come last
            result = self._result()
            result.write(self.base)
        cost = measured.cost(self.options.cost_kind)
        left = max(0.0, self.options.minutes - (time.monotonic() - self.started) / 60)
        self.reporter.info(
            f"  {self.options.cost_kind} {cost:.4g}, agreement {measured.agreement:.3f}, "
            f"{measured.lost:.2f} points lost (standard error {measured.error:.2f}); "
            f"{len(result.points)} done, {len(result.front)} on the front, {left:.0f} minutes left"
        )

    def _give_up(self, claim: Claim, error: VitedgeError) -> None:
        told = f"{error.what} {error.why}".strip()
        self.failed[str(claim.candidate)] = told
        self.claims.release(claim, told)
        self.reporter.warn(f"{claim.candidate}: {told}")

    # The end.

    def _result(self) -> SearchResult:
        points = [Point(candidate, Measured.from_dict(result)) for candidate, result in self.claims.measured()]
        spent = time.monotonic() - self.started
        return SearchResult(self.root, self.options, steadied(points), self.plan, self.failed, spent)

    def _finish(self) -> SearchResult:
        result = finish.finish(self._result, self.folders, self.base, self.reporter)
        if not result.points:
            raise VitedgeError(
                "No candidate was measured.",
                next(iter(self.failed.values()), "The time was too short for one."),
                "Give more --minutes; what was made is kept, and the same command goes on from it.",
                exit_code=1,
            )
        return result


def _check(options: SearchOptions) -> None:
    target = targets.get(options.target)
    probe = target.probe()
    if not probe.can_build:
        raise VitedgeError(f"The target '{target.name}' can't build here.", probe.reason, probe.fix, exit_code=1)
    if not probe.can_run and not options.host:
        raise VitedgeError(
            f"The target '{target.name}' can't run here.", probe.reason, "Measure on a board: --host user@board."
        )


def _split(dataset: Dataset | None, config: RunConfig, held_out: int) -> tuple[int, Dataset]:
    """(how many images are fitted to, those that candidates are judged on): no image is of both."""
    if dataset is None:
        raise VitedgeError(
            "A search needs calibration images.", "Candidates are fitted to some and judged on others.", "Give --calib."
        )
    held = min(held_out, len(dataset) // 3)
    fitted = min(config.calib.calib_size, len(dataset) - held)
    if held < FEWEST // 2 or fitted < FEWEST:
        raise VitedgeError(
            f"{len(dataset)} calibration images are too few for a search.",
            "Candidates are fitted to some and judged on others.",
            "Give some hundred.",
        )
    used = set(sample(dataset, fitted, config.calib.seed).files)
    others = dataset.subset([n for n, file in enumerate(dataset.files) if file not in used])
    return fitted, sample(others, held, config.calib.seed)
