"""What the methods of a run give back. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

from vitedge.bundle import Bundle
from vitedge.documents import Json
from vitedge.targets.metadata import read_metadata

if TYPE_CHECKING:
    from vitedge.quant.analysis import LayerError
    from vitedge.steps.predict import Prediction
    from vitedge.tables import Table


@dataclass(frozen=True)
class Artifact:
    """What a target runs.

    Attributes:
        name: folder below `build/`.
        path: the file that the target's runner opens.
        size_bytes: of all its files.
        accepted: whether it agrees with FP32 within its tolerance; None where it can't be run here.
        agreement: share of the images compared on that have FP32's class.
        facts: what `metadata.json` says of it.
    """

    name: str
    target: str
    precision: str
    platform: str | None
    path: Path
    size_bytes: int
    accepted: bool | None
    agreement: float | None
    facts: Json

    @classmethod
    def read(cls, bundle: Bundle, name: str) -> Artifact:
        """The artifact `name` of a run."""
        metadata = read_metadata(bundle.read(f"build/{name}/metadata.json"), f"build/{name}/metadata.json")
        check = metadata["check"]
        return cls(
            name,
            metadata["target"],
            metadata["precision"],
            metadata.get("platform"),
            bundle.path(f"build/{name}/{metadata['artifact']}"),
            bundle.facts(f"build/{name}")["bytes"],
            check["accepted"],
            check.get("agreement"),
            metadata,
        )


@dataclass(frozen=True)
class Analysis:
    """The error of each quantised tensor, worst first, and the table of those shown."""

    errors: list[LayerError]
    table: Table

    def _repr_html_(self) -> str:
        from vitedge.report.html_table import table_html

        return table_html(self.table)


@dataclass(frozen=True)
class Predictions(Sequence["Prediction"]):
    """What an artifact says of images, in their order; `activation`: what its probabilities are."""

    predictions: list[Prediction]
    artifact: str
    device: str
    activation: str

    def __len__(self) -> int:
        return len(self.predictions)

    @overload
    def __getitem__(self, at: int) -> Prediction: ...
    @overload
    def __getitem__(self, at: slice) -> list[Prediction]: ...
    def __getitem__(self, at: int | slice) -> Prediction | list[Prediction]:
        return self.predictions[at]

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        facts = {"artifact": self.artifact, "device": self.device, "activation": self.activation}
        return facts | {"images": [one.to_dict() for one in self.predictions]}


@dataclass(frozen=True)
class Pack:
    """A tar file for a board: its size in MiB, number of images, names of artifacts."""

    path: Path
    mib: float
    images: int
    artifacts: list[str]
