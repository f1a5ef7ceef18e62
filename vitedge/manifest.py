"""What a run folder says of itself, `manifest.json`: each step's recipe and each file's hash."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, JsonValue

from vitedge import __version__
from vitedge.documents import Document, Json, RelativePath

SCHEMA = 1
MANIFEST = "manifest.json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Facts = Json


class ArtifactEntry(Document):
    """A file of the run: `parents` are the files that it was made from, with their hashes then."""

    sha256: Sha256
    bytes: int = Field(ge=0)
    step: str
    parents: dict[RelativePath, Sha256] = {}


class StepEntry(Document):
    """A step that was done: its recipe (all that its key covers), its files and what it reported."""

    key: Sha256
    options: dict[str, JsonValue] = {}
    inputs: dict[RelativePath, Sha256] = {}
    external: dict[str, str] = {}
    code: str = ""
    tools: dict[str, str] = {}
    outputs: list[RelativePath] = []
    facts: dict[str, JsonValue] = {}
    seconds: float = Field(0.0, ge=0)


class Manifest(Document):
    """`manifest.json`. `digest` is of all the rest; runs of earlier versions have none."""

    version: int = Field(SCHEMA, alias="schema")
    vitedge: str = __version__
    steps: dict[str, StepEntry] = {}
    artifacts: dict[RelativePath, ArtifactEntry] = {}
    digest: str = ""

    def to_json(self) -> dict[str, JsonValue]:
        """As the file holds it, with its digest."""
        values = self.model_dump(mode="json", by_alias=True, exclude={"digest"})
        return values | {"digest": digest_of(values)}


def digest_of(value: Any) -> str:
    """Hex SHA-256 of a value as JSON, its keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
