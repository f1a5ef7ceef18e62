"""The index of a pack: what each of its files is, checked before a byte of them is read."""

from __future__ import annotations

from math import prod
from typing import Annotated

from pydantic import Field, JsonValue, model_validator

from vitedge.bench.golden.facts import Golden, golden_files
from vitedge.data.preprocess import Preprocess
from vitedge.documents import Document
from vitedge.manifest import Sha256
from vitedge.targets.metadata import Name, Precision

SCHEMA = 1
INDEX = "pack.json"
# As a board's file systems and shells take them without quoting.
PackPath = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*$", max_length=400)
]


class PackFile(Document):
    """One member of the tar file."""

    sha256: Sha256
    bytes: int = Field(ge=0)


class PackArtifact(Document):
    """One artifact: its files lie below `artifacts/NAME/`, and `file` is the one that its target opens."""

    name: Name
    target: Name
    precision: Precision
    platform: Name | None
    file: PackPath
    bytes: int = Field(ge=0)
    sha256: Sha256


class PackIndex(Document):
    """`pack.json`, the first member.

    Attributes:
        shape: of the images, [N, H, W, 3]; `pixels.u8` holds their bytes.
        classes: of `reference.f32`, float32 [N, classes]; None where there is none.
        names: of the classes.
        golden: references that every artifact is checked by before it is measured; packs of earlier versions have none.
        digest: of all the rest.
    """

    version: int = Field(alias="schema")
    vitedge: str
    shape: list[Annotated[int, Field(gt=0, lt=2**32)]] = Field(min_length=4, max_length=4)
    classes: int | None = Field(None, gt=0, lt=2**24)
    names: list[str] | None = None
    preprocess: dict[str, JsonValue]
    data: dict[str, JsonValue]
    artifacts: list[PackArtifact]
    golden: Golden | None = None
    files: dict[PackPath, PackFile]
    digest: Sha256

    @model_validator(mode="after")
    def _fits_together(self) -> PackIndex:
        Preprocess.from_dict(self.preprocess, "the preprocessing")
        expected = {"pixels.u8": prod(self.shape)}
        if self.classes:
            expected["reference.f32"] = 4 * self.shape[0] * self.classes
        for path, size in expected.items():
            if path not in self.files or self.files[path].bytes != size:
                raise ValueError(f"{path} is to have {size:,} bytes")
        if INDEX in self.files:
            raise ValueError(f"{INDEX} is no file of its own")
        if len({one.name for one in self.artifacts}) != len(self.artifacts):
            raise ValueError("two artifacts have one name")
        for one in self.artifacts:
            for file in (one.file, "metadata.json"):
                if f"artifacts/{one.name}/{file}" not in self.files:
                    raise ValueError(f"{one.name} has no {file}")
        if self.golden is not None:
            self._golden_fits(self.golden)
        return self

    def _golden_fits(self, golden: Golden) -> None:
        if max(golden.positions) >= self.shape[0]:
            raise ValueError("a golden image is not among its images")
        if missing := [name for name in golden_files(golden) if name not in self.files]:
            raise ValueError(f"{missing[0]} is missing")
        names = {one.name for one in self.artifacts}
        for name, one in golden.artifacts.items():
            if name not in names or one.graph not in golden.graphs:
                raise ValueError(f"the golden references of {name} do not fit")
            if one.blocks is not None and f"artifacts/{name}/{one.blocks}" not in self.files:
                raise ValueError(f"{name} has no {one.blocks}")
