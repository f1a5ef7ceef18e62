"""Options that belong to no room: where the model and the images come from, which steps are taken, what a command
writes. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from vitedge.bench.options import SampleOptions
from vitedge.data.options import DataColumns
from vitedge.options import SEED_MAX, Cli, Options
from vitedge.prune.options import parse_shares
from vitedge.serve.options import TEXT_EMBEDDINGS


class SourceSection(Options):
    """Which model is read, and what its file can't tell."""

    model: str = Field("vit_b_16", description="Name (torchvision's weights), checkpoint file, or folder.")
    heads: int | None = Field(None, ge=1, le=1024, description="Attention heads, where nothing with the model tells.")
    image_size: int | None = Field(None, ge=1, le=4096, description="Another input resolution, in pixels.")
    preprocess: str | None = Field(None, description="imagenet, inception or a JSON file.")
    weights: str | None = Field(
        None, description="Of a checkpoint with several: ema (taken by default), model, or a name in the file."
    )
    architecture: str | None = Field(None, description="timm's name of the model, for a state dict alone.")
    output: Literal["logits", "embedding", "patch-tokens"] = Field(
        "logits", description="What the model gives: class logits, its embedding, or one of every patch."
    )
    norm_eps: float | None = Field(None, gt=0, le=1, description="LayerNorm's epsilon, where nothing tells.")
    adapter: str | None = Field(None, description="Folder of a peft adapter (LoRA), merged into the model.")


class ModelSection(SourceSection):
    """Where the model comes from."""

    classes: str | None = Field(None, description="File of class names, one a line.")
    activation: Literal["softmax", "sigmoid"] | None = Field(
        None, description="sigmoid for a multi-label head; from the checkpoint by default."
    )
    verify: bool | None = Field(
        None,
        description="Compares a few images with the source's own library, to 1e-4. (default: where it is installed)",
    )


class CalibSection(DataColumns):
    """The images that compression is fitted to. No labels needed."""

    calib: str | None = Field(None, description="Calibration images. (default: ./calib, else drawn ones)")
    calib_size: int = Field(256, ge=1, le=1_000_000, description="Images taken from it at most.")
    seed: int = Field(0, ge=0, le=SEED_MAX, description="Seed of every random choice.")


class StepsSection(Options):
    """Which of the optional steps are taken."""

    condition: bool = Field(True, description="Exact float transforms before anything is quantised.")
    quantize: Literal["none", "dynamic", "static", "qat"] = Field(
        "none", description="INT8, and how its scales are found; qat: static, then trained by the float model."
    )


class ExportSection(Options):
    """The ONNX graphs."""

    batch: int = Field(1, ge=1, le=4096, description="Static batch size of the graphs.")
    dynamic_batch: bool = Field(False, description="A free batch dimension instead of a static one.")


class PackSection(SampleOptions):
    """What a pack for a board holds."""

    output: Annotated[str, Cli(short="-o")] = Field("pack.tar", description="The tar file to write.")


class ReportSection(Options):
    """What the report recommends by."""

    output: Annotated[str | None, Cli(short="-o")] = Field(None, description="HTML file. (default: in the run)")
    max_drop: float = Field(1.0, ge=0, le=100, description="Points of top-1 that may be lost.")
    max_ms: float | None = Field(None, gt=0, le=1e9, description="Limit of p50 for the recommendation.")


class PredictSection(Options):
    """Which artifact classifies."""

    artifact: str | None = Field(None, description="Folder below build/. (default: the first that runs here)")
    top: int = Field(5, ge=1, le=100_000, description="Classes shown an image.")
    text_embeddings: str | None = Field(None, description=TEXT_EMBEDDINGS)


class AnalyzeSection(Options):
    """How the quantisation error is measured."""

    images: int = Field(16, ge=1, le=1_000_000, description="Calibration images used.")
    top: int = Field(25, ge=0, le=1_000_000, description="Rows shown; 0 for all.")


class SensitivitySection(Options):
    """How the cost of pruning is measured."""

    shares: str = Field("0.1,0.2,0.3,0.4,0.5", description="Shares of the model to try.")
    images: int = Field(128, ge=1, le=1_000_000, description="Calibration images used at most.")

    @field_validator("shares")
    @classmethod
    def _numbers(cls, value: str) -> str:
        parse_shares(value)
        return value


class TrainSection(DataColumns):
    """From what to what a fine-tuning goes."""

    data: str | None = Field(None, description="Data set; train, val and test below it are its parts.")
    out: str = Field("vitedge-trained", description="Folder for the trained model.")
    classes: str = Field("auto", description="auto: the data set's; or a file, one name a line.")
    resume: bool = Field(False, description="Go on where a run in --out stopped.")
    overwrite: bool = Field(False, description="Replace the trained model in --out.")
