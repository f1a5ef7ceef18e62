"""Every option of every step, TOML in and out. Imports no torch: a board reads it too.

A section is the options class of the room that it configures; the fields' descriptions are the help texts of the
command line.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any, Literal, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vitedge import targets
from vitedge.condition import ConditionOptions
from vitedge.errors import VitedgeError
from vitedge.files import write_text
from vitedge.prune import PruneOptions
from vitedge.quant.options import QuantOptions
from vitedge.train.options import DistilOptions, QatOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Section(BaseModel):
    """Base of a section: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """Where the model comes from."""

    model: str = Field("vit_b_16", description="Name (torchvision's weights), checkpoint file, or folder.")
    heads: int | None = Field(None, ge=1, description="Attention heads, where the shapes can't tell.")
    image_size: int | None = Field(None, ge=1, description="Another input resolution, in pixels.")
    preprocess: str | None = Field(None, description="imagenet, inception or a JSON file.")
    classes: str | None = Field(None, description="File of class names, one a line.")
    activation: Literal["softmax", "sigmoid"] | None = Field(
        None, description="sigmoid for a multi-label head; from the checkpoint by default."
    )


class CalibSection(Section):
    """The images that compression looks at. No labels needed."""

    calib: str | None = Field(None, description="Calibration folder. (default: ./calib where there is one)")
    calib_size: int = Field(256, ge=1, description="Images taken from it at most.")
    seed: int = Field(0, ge=0, description="Seed of every random choice.")


class StepsSection(Section):
    """Which of the optional steps are taken."""

    condition: bool = Field(True, description="Exact float transforms before anything is quantised.")
    quantize: Literal["none", "dynamic", "static", "qat"] = Field(
        "none", description="INT8, and how its scales are found; qat: static, then trained by the float model."
    )


class ExportSection(Section):
    """The ONNX graphs."""

    batch: int = Field(1, ge=1, description="Static batch size of the graphs.")
    dynamic_batch: bool = Field(False, description="A free batch dimension instead of a static one.")


class RunConfig(Section):
    """The whole configuration of a run, as `vitedge.toml` holds it."""

    model: ModelSection = ModelSection()
    calib: CalibSection = CalibSection()
    steps: StepsSection = StepsSection()
    prune: PruneOptions = PruneOptions()
    distill: DistilOptions = DistilOptions()
    condition: ConditionOptions = ConditionOptions()
    quantize: QuantOptions = QuantOptions()
    qat: QatOptions = QatOptions()
    export: ExportSection = ExportSection()
    build: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def target_options(self, name: str) -> targets.base.TargetOptions:
        """The options of that target, from `[build.NAME]`. Raises VitedgeError."""
        return _validated(targets.get(name).Options, self.build.get(name, {}), f"[build.{name}]")


def load_config(path: Path) -> dict[str, Any]:
    """The sections of a TOML file as they stand there; raises VitedgeError where it can't be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise VitedgeError(f"The configuration '{path}' can't be read.", str(error), "Check --config.") from error
    except tomllib.TOMLDecodeError as error:
        raise VitedgeError(f"'{path}' is not valid TOML.", str(error), "Mend that line.") from error


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries laid over each other, the last one on top; None says nothing."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, dict):
                result[key] = merge(result.get(key, {}), value)
            elif value is not None:
                result[key] = value
    return result


def make_config(*layers: dict[str, Any], source: str = "the configuration") -> RunConfig:
    """The validated configuration of these layers; raises VitedgeError that names every wrong key or value."""
    config = _validated(RunConfig, merge(*layers), source)
    for name in config.build:
        config.target_options(name)
    return config


def save_config(path: Path, config: RunConfig) -> None:
    """Writes the configuration as TOML, atomically; options that are not set are left out."""
    write_text(path, tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))


def _validated(model: type[Any], values: dict[str, Any], source: str) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(model, values, e) for e in error.errors()]
        raise VitedgeError(
            f"{source[0].upper()}{source[1:]} has {len(lines)} wrong option{'s' if len(lines) > 1 else ''}.",
            " ".join(lines),
            "`vitedge compress --help` and `vitedge build --help` list the options.",
        ) from error


def _explain(model: type[BaseModel], values: Any, error: Any) -> str:
    where = [str(part) for part in error["loc"]]
    name = ".".join(where)
    if error["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{name} = {error['input']!r}: {error['msg']}."
    options: Any = model
    for part in where[:-1]:
        annotation = options.model_fields[part].annotation
        inner = [a for a in get_args(annotation) or (annotation,) if isinstance(a, type) and a is not type(None)]
        options = inner[0] if inner else options
    fields = list(getattr(options, "model_fields", None) or getattr(options, "__dataclass_fields__", {}))
    near = difflib.get_close_matches(where[-1], fields, 1, 0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(fields)}."
    return f"There is no option '{name}'; {hint}"
