"""Every option of every step and command, TOML in and out. Imports no torch: a board reads it too.

A section is the options class of the room that it configures; its fields are the TOML keys, the flags of the command
line and the keywords of the API, and their descriptions are the help texts of all three.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, Field, ValidationError

from vitedge import documents, targets
from vitedge.bench.options import BenchOptions
from vitedge.condition import ConditionOptions
from vitedge.cost.options import ProfileOptions
from vitedge.errors import VitedgeError
from vitedge.files import write_text
from vitedge.options import OptionField, Options, fields_of, told
from vitedge.prune import PruneOptions
from vitedge.quant.options import QuantOptions
from vitedge.search.options import SearchOptions
from vitedge.sections import (
    AnalyzeSection,
    CalibSection,
    ExportSection,
    ModelSection,
    PackSection,
    PredictSection,
    ReportSection,
    SensitivitySection,
    SourceSection,
    StepsSection,
    TrainSection,
)
from vitedge.serve.options import ServeOptions
from vitedge.train.options import AugmentOptions, DistilOptions, FineTuneOptions, LoopOptions, QatOptions

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=BaseModel)
# Sections and their keys as a TOML file has them, not validated yet.
Layer = documents.Json


class RunConfig(Options):
    """The whole configuration. A run's `vitedge.toml` holds the sections of `compress` and `build`, a file given with
    --config those of any command."""

    model: ModelSection = ModelSection()
    calib: CalibSection = CalibSection()
    steps: StepsSection = StepsSection()
    prune: PruneOptions = PruneOptions()
    distill: DistilOptions = DistilOptions()
    condition: ConditionOptions = ConditionOptions()
    quantize: QuantOptions = QuantOptions()
    qat: QatOptions = QatOptions()
    export: ExportSection = ExportSection()
    build: dict[str, Layer] = Field(default_factory=dict)
    bench: BenchOptions = BenchOptions()
    pack: PackSection = PackSection()
    report: ReportSection = ReportSection()
    predict: PredictSection = PredictSection()
    serve: ServeOptions = ServeOptions()
    analyze: AnalyzeSection = AnalyzeSection()
    sensitivity: SensitivitySection = SensitivitySection()
    profile: ProfileOptions = ProfileOptions()
    search: SearchOptions = SearchOptions()
    train: TrainSection = TrainSection()
    fine_tune: FineTuneOptions = FineTuneOptions()
    loop: LoopOptions = LoopOptions()
    augment: AugmentOptions = AugmentOptions()

    def target_options(self, name: str) -> targets.base.TargetOptions:
        """The options of that target, from `[build.NAME]`. Raises VitedgeError."""
        return _validated(targets.get(name).Options, self.build.get(name, {}), f"[build.{name}]")


# Command -> section -> its options, in the order of `--help`. `build` has the targets' own: see `sections_of`.
COMMANDS: dict[str, dict[str, type[Options]]] = {
    "compress": {
        "model": ModelSection,
        "calib": CalibSection,
        "prune": PruneOptions,
        "distill": DistilOptions,
        "steps": StepsSection,
        "quantize": QuantOptions,
        "qat": QatOptions,
        "condition": ConditionOptions,
        "export": ExportSection,
    },
    "bench": {"bench": BenchOptions},
    "pack": {"pack": PackSection},
    "report": {"report": ReportSection},
    "predict": {"predict": PredictSection},
    "serve": {"serve": ServeOptions},
    "inspect": {"model": SourceSection},
    "analyze": {"analyze": AnalyzeSection},
    "sensitivity": {"sensitivity": SensitivitySection, "prune": PruneOptions},
    "profile": {"profile": ProfileOptions},
    "search": {"search": SearchOptions, "model": ModelSection, "calib": CalibSection},
    "train": {
        "model": SourceSection,
        "train": TrainSection,
        "fine_tune": FineTuneOptions,
        "loop": LoopOptions,
        "augment": AugmentOptions,
    },
}
# The same for the functions over a model in memory, which share their options with the commands.
COMMANDS |= {
    "load": {"model": ModelSection},
    "images": {"calib": CalibSection},
    "prune": {"calib": CalibSection, "prune": PruneOptions, "distill": DistilOptions},
    "condition": {"calib": CalibSection, "condition": ConditionOptions},
    "quantize": {"calib": CalibSection, "quantize": QuantOptions, "qat": QatOptions},
    "distill": {"calib": CalibSection, "distill": DistilOptions},
    "export": {"export": ExportSection},
}
# What a run folder keeps of its configuration.
_KEPT = {*COMMANDS["compress"], "build"}
# Sections whose flags say nothing unless the configuration asks for what they configure.
_NEEDS = {
    "prune": "--prune or --sparsity",
    "distill": "--recover distill or --quantize qat",
    "quantize": "--quantize dynamic, static or qat",
}


def sections_of(command: str) -> dict[str, type[Options]]:
    """Section -> its options, of that command; "build.NAME" for a target's."""
    if command == "build":
        return {f"build.{name}": targets.get(name).Options for name in targets.names()}
    return COMMANDS[command]


def keywords_of(command: str) -> dict[str, list[tuple[str, OptionField]]]:
    """Keyword -> the (section, field) pairs that get its value: where two sections have one, both do."""
    owners: dict[str, list[tuple[str, OptionField]]] = {}
    for section, options in sections_of(command).items():
        for field in fields_of(options):
            if field.keyword:
                owners.setdefault(field.keyword, []).append((section, field))
    return owners


def takes_options(command: str) -> Callable[[F], F]:
    """Shows the options of that command in the signature and in the help of a function with **keywords."""

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        lines, extra, sections = [], [], set()
        for keyword, owners in keywords_of(command).items():
            section, field = owners[0]
            if keyword in signature.parameters:
                continue
            extra.append(inspect.Parameter(keyword, inspect.Parameter.KEYWORD_ONLY, default=field.default))
            if section not in sections:
                sections.add(section)
                lines.append(f"\n    [{section}]")
            lines.append(f"    {keyword} = {field.default!r}: {field.description}")
        function.__signature__ = signature.replace(parameters=[*own, *extra])  # type: ignore[attr-defined]
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nOptions:\n" + "\n".join(lines) + "\n"
        return function

    return decorate


def to_sections(command: str, keywords: Mapping[str, Any], target: str | None = None) -> Layer:
    """The keywords of a command as sections, to be laid over a file's. Raises VitedgeError at an unknown one.

    target: of `build`; an option of another target is refused.
    """
    owners = keywords_of(command)
    layer: Layer = {}
    for keyword, given in keywords.items():
        value = str(given) if isinstance(given, Path) else given
        if keyword not in owners:
            near = difflib.get_close_matches(keyword, owners, 1, 0.5)
            raise VitedgeError(
                f"`{command}` has no option '{keyword}'.",
                f"Did you mean '{near[0]}'?" if near else "",
                f"`vitedge {command} --help-all` lists the options.",
            )
        owned = owners[keyword]
        if target is not None:
            owned = [(s, f) for s, f in owned if s == f"build.{target}"]
            if value is not None and not owned:
                other = owners[keyword][0][0].partition(".")[2]
                raise VitedgeError(
                    f"The target '{target}' has no option --{keyword.replace('_', '-')}.",
                    f"It belongs to the target '{other}'.",
                    f"Leave it out, or give --target {other}.",
                )
        for section, field in owned:
            place = layer
            for part in section.split("."):
                place = place.setdefault(part, {})
            place[field.name] = value
    return layer


def configure(command: str, keywords: Mapping[str, Any], file: str | Path | None = None) -> RunConfig:
    """The configuration of a command: its keywords over the TOML file over the defaults. Raises VitedgeError."""
    layers = [load_config(Path(file))] if file else []
    return make_config(*layers, to_sections(command, keywords), source=str(file) if file else f"`vitedge {command}`")


def refuse_useless(keywords: Mapping[str, Any], config: RunConfig) -> None:
    """Raises VitedgeError for options of `compress` that would do nothing: the user meant something by them."""
    training = config.prune.recover == "distill" or config.steps.quantize == "qat"
    cut = config.prune.prune is not None or config.prune.sparsity is not None
    used = {"prune": cut, "distill": training, "quantize": config.steps.quantize != "none"}
    owners = keywords_of("compress")
    for section, flag in _NEEDS.items():
        given = [
            k for k, v in keywords.items() if v is not None and k != "seed" and any(s == section for s, _ in owners[k])
        ]
        if given and not used[section]:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise VitedgeError(f"{names} says nothing without {flag}.", "", f"Add {flag}, or leave it out.")


def load_config(path: Path) -> Layer:
    """The sections of a TOML file as they stand there; raises VitedgeError where it can't be read."""
    return documents.read_toml(path, todo="Check --config.")


def without_local(layer: Layer) -> Layer:
    """The sections without the options that name something to execute: a run folder must not choose a program."""
    sections = {s: options for command in (*COMMANDS, "build") for s, options in sections_of(command).items()}
    result = merge(layer)
    for section, options in sections.items():
        place: Any = result
        for part in section.split("."):
            place = place.get(part, {}) if isinstance(place, dict) else {}
        for field in fields_of(options):
            if field.local and isinstance(place, dict):
                place.pop(field.name, None)
    return result


def merge(*layers: Layer) -> Layer:
    """Nested dictionaries laid over each other, the last one on top; None says nothing."""
    result: Layer = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, dict):
                below = result.get(key, {})
                result[key] = merge(below if isinstance(below, dict) else {}, value)
            elif value is not None:
                result[key] = value
    return result


def make_config(*layers: Layer, source: str = "the configuration") -> RunConfig:
    """The validated configuration of these layers; raises VitedgeError that names every wrong key or value."""
    config = _validated(RunConfig, merge(*layers), source)
    for name in config.build:
        config.target_options(name)
    return config


def save_config(path: Path, config: RunConfig) -> None:
    """Writes what a run keeps of the configuration as TOML, atomically; options that are not set are left out."""
    kept = config.model_dump(mode="json", exclude_none=True, include=_KEPT)
    write_text(path, tomli_w.dumps(without_local(kept)))


def _validated(model: type[M], values: Layer, source: str) -> M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        todo = "`vitedge compress --help-all` and `vitedge build --help-all` list the options."
        if source.startswith("`vitedge "):  # a command's own flags
            todo = f"{source[:-1]} --help` lists the options."
        raise told(model, error, source, todo) from error
