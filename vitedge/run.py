"""A run folder as an object: thin over the pipeline. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitedge import config as options
from vitedge.bundle import Bundle
from vitedge.config import Layer, RunConfig, takes_options
from vitedge.errors import VitedgeError
from vitedge.manifest import Facts
from vitedge.reporter import Reporter, WarningReporter
from vitedge.results import Analysis, Artifact, Pack, Predictions

if TYPE_CHECKING:
    from vitedge.bench.result import BenchResult
    from vitedge.loaded import Model
    from vitedge.steps.inspect import Inspection
    from vitedge.steps.predict import Prediction
    from vitedge.steps.sensitivity import SensitivityResult


class Run:
    """A run folder. `vitedge.compress` makes one, `vitedge.open` opens one."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        Bundle.open(self.root)

    def __repr__(self) -> str:
        return f"Run({str(self.root)!r}, artifacts={[a.name for a in self.artifacts]})"

    @property
    def bundle(self) -> Bundle:
        """The run folder with its manifest, as it stands now."""
        return Bundle.open(self.root)

    @property
    def config(self) -> RunConfig:
        """The configuration that the run keeps."""
        from vitedge.pipeline import read_config

        return read_config(self.root)

    @property
    def steps(self) -> dict[str, Facts]:
        """Step -> what it reported."""
        return {name: dict(step.facts) for name, step in self.bundle.manifest.steps.items()}

    @property
    def artifacts(self) -> list[Artifact]:
        """What was built."""
        bundle = self.bundle
        built = [step.partition("/")[2] for step in bundle.manifest.steps if step.startswith("build/")]
        return [Artifact.read(bundle, name) for name in built]

    def model(self, which: str = "model") -> Model:
        """The run's final model in memory, quantised as the run is; "source": the model as it came. Needs torch."""
        from vitedge.loaded import from_run

        return from_run(self.root, which)

    @takes_options("build")
    def build(
        self,
        target: str = "onnxruntime",
        precision: str | None = None,
        platform: str | None = None,
        *,
        config: str | Path | None = None,
        reporter: Reporter | None = None,
        **keywords: Any,
    ) -> Artifact:
        """One artifact of a target. One that is outside its tolerance is returned with `accepted` False.

        precision, platform: the target's first where they are None.
        Raises VitedgeError where the build fails.
        """
        from vitedge import pipeline

        layers = _target_layers(target, keywords, config)
        record = pipeline.build(self.root, target, precision, platform, layers, reporter or WarningReporter())
        return Artifact.read(self.bundle, record.facts["folder"].partition("/")[2])

    def preview(
        self,
        target: str,
        precision: str | None = None,
        platform: str | None = None,
        *,
        config: str | Path | None = None,
        **keywords: Any,
    ) -> str | None:
        """The command that a target would run, where the options ask for it and not for a build; else None."""
        from vitedge import pipeline

        layers = _target_layers(target, keywords, config)
        return pipeline.preview_build(self.root, target, precision, platform, layers)

    @takes_options("bench")
    def bench(
        self,
        data: str | Path | None = None,
        *,
        config: str | Path | None = None,
        reporter: Reporter | None = None,
        command: str = "",
        **keywords: Any,
    ) -> BenchResult:
        """Latency and accuracy of all artifacts that this machine (or the one `host`) runs.

        command: what was typed, for the report. Raises VitedgeError where there is nothing to measure.
        """
        chosen = options.configure("bench", {**keywords, "data": data}, config).bench
        if chosen.host:
            found = self.bench_hosts(data, config=config, reporter=reporter, command=command, **keywords)
            if len(found) > 1:
                raise VitedgeError("bench() measures on one host.", "", "For several, call bench_hosts().")
            return next(iter(found.values()))
        from vitedge.bench.measure import bench_bundle

        return bench_bundle(self.bundle, chosen.request(command), chosen.settings(), reporter or WarningReporter())

    @takes_options("bench")
    def bench_hosts(
        self,
        data: str | Path | None = None,
        *,
        pack: str | Path | None = None,
        config: str | Path | None = None,
        reporter: Reporter | None = None,
        command: str = "",
        **keywords: Any,
    ) -> dict[str, BenchResult]:
        """Host -> what was measured there, over SSH; `host` names one or more."""
        import shlex

        from vitedge.bench.fleet import bench_fleet

        chosen = options.configure("bench", {**keywords, "data": data}, config).bench
        if chosen.text_embeddings:
            raise VitedgeError("--text-embeddings is not taken with --host.", "", "Measure it on this machine.")
        return bench_fleet(
            self.bundle,
            Path(pack) if pack else None,
            chosen.host,
            chosen.request(command),
            chosen.settings(),
            reporter or WarningReporter(),
            ssh=shlex.split(chosen.ssh),
            python=chosen.remote_python,
        )

    @takes_options("pack")
    def pack(
        self,
        output: str | Path | None = None,
        *,
        config: str | Path | None = None,
        reporter: Reporter | None = None,
        **keywords: Any,
    ) -> Pack:
        """Writes artifacts and images for a board into one tar file."""
        from vitedge.bench.pack import write_pack

        chosen = options.configure("pack", {**keywords, "output": output}, config).pack
        bundle = self.bundle
        with bundle.lock():
            index = write_pack(
                bundle,
                Path(chosen.output),
                data=chosen.of(chosen.data),
                limit=chosen.limit,
                seed=chosen.seed,
                only=chosen.only,
                reporter=reporter or WarningReporter(),
            )
        path = Path(chosen.output)
        names = [one.name for one in index.artifacts]
        return Pack(path, path.stat().st_size / 2**20, index.shape[0], names)

    @takes_options("serve")
    def serve(self, *, config: str | Path | None = None, reporter: Reporter | None = None, **keywords: Any) -> None:
        """Serves a page and a REST API over the run's artifacts, until SIGINT or SIGTERM."""
        from vitedge.serve.run import serve

        serve(self.root, options.configure("serve", keywords, config).serve, reporter or WarningReporter())

    @takes_options("predict")
    def predict(
        self,
        *images: str | Path,
        config: str | Path | None = None,
        told: Callable[[Prediction], None] | None = None,
        **keywords: Any,
    ) -> Predictions:
        """The likeliest classes of images, or of all those in folders. Needs no torch.

        told: gets each prediction as it comes.
        Raises VitedgeError where no artifact runs here, the one named is stale, or no image can be read.
        """
        from vitedge.data.texts import read_texts
        from vitedge.steps.predict import Predictor

        chosen = options.configure("predict", keywords, config).predict
        found: list[Prediction] = []
        texts = None if chosen.text_embeddings is None else read_texts(chosen.text_embeddings)
        with Predictor(self.bundle, chosen.artifact, texts) as predictor:
            for one in predictor.predict(images, chosen.top):
                found.append(one)
                if told:
                    told(one)
        order = {file: number for number, file in enumerate(predictor.files)}
        found.sort(key=lambda one: order[one.file])
        return Predictions(found, predictor.name, predictor.device, predictor.activation)

    @takes_options("report")
    def report(
        self,
        output: str | Path | None = None,
        *,
        config: str | Path | None = None,
        reporter: Reporter | None = None,
        **keywords: Any,
    ) -> Path:
        """Writes report.html and, beside it, report.md; returns the path of the first."""
        from vitedge.report.write import write_report

        chosen = options.configure("report", {**keywords, "output": output}, config).report
        return write_report(
            self.bundle,
            Path(chosen.output) if chosen.output else self.root / "report.html",
            max_drop=chosen.max_drop,
            max_ms=chosen.max_ms,
            reporter=reporter or WarningReporter(),
        )

    @takes_options("analyze")
    def analyze(
        self, *, config: str | Path | None = None, reporter: Reporter | None = None, **keywords: Any
    ) -> Analysis:
        """The error of each quantised tensor, worst first, kept in the run. Needs torch."""
        from vitedge.steps.analyze import analyze_run, error_table

        chosen = options.configure("analyze", keywords, config).analyze
        bundle = self.bundle
        with bundle.lock():
            errors = analyze_run(bundle, chosen.images, reporter or WarningReporter())
        images = bundle.facts("analyze")["images"]
        return Analysis(errors, error_table(errors[: chosen.top or None], images))

    @takes_options("sensitivity")
    def sensitivity(
        self, *, config: str | Path | None = None, reporter: Reporter | None = None, **keywords: Any
    ) -> SensitivityResult:
        """What pruning would cost, share by share and layer by layer, kept in the run. Needs torch."""
        from vitedge.prune.options import parse_shares
        from vitedge.steps.sensitivity import sensitivity_of_run

        settings = options.configure("sensitivity", keywords, config)
        chosen, bundle = settings.sensitivity, self.bundle
        shares = parse_shares(chosen.shares)
        with bundle.lock():
            return sensitivity_of_run(bundle, settings.prune, shares, chosen.images, reporter or WarningReporter())

    def inspect(self) -> Inspection:
        """Layers, graphs, operators and artifacts of the run, as tables."""
        from vitedge.steps.inspect import inspect_run

        return inspect_run(self.bundle)


def _target_layers(target: str, keywords: Mapping[str, Any], config: str | Path | None) -> Layer:
    """The sections `[build.*]` of a file and of the keywords."""
    own = options.to_sections("build", keywords, target)
    file = options.load_config(Path(config)) if config else {}
    return options.merge({"build": file.get("build", {})}, own)
