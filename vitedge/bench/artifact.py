"""One thing to measure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vitedge.documents import Json

SOURCE = "source"


@dataclass(frozen=True)
class Artifact:
    """A file that a target opens.

    Attributes:
        name: of its folder in the bundle, such as "onnxruntime-fp32"; "source" for the model as it came.
        metadata: what its build wrote beside it.
        module: a module with a TARGET that is not registered; None for a registered target.
        sha256: of the files that make it up; its first digits tell records of an older build apart.
    """

    name: str
    target: str
    precision: str
    path: Path
    platform: str | None = None
    metadata: Json = field(default_factory=dict)
    module: str | None = None
    sha256: str = ""

    @property
    def key(self) -> str:
        """File name of its records."""
        return f"{self.name}-{self.sha256[:10]}" if self.sha256 else self.name
