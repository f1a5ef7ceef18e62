"""`metadata.json`, which lies beside each artifact: what all targets write into it; the rest is the target's own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from vitedge import documents
from vitedge.documents import Json, RelativePath

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}$")]
Precision = Literal["fp32", "fp16", "bf16", "int8"]


class Check(BaseModel):
    """How near the artifact was to FP32 when it was built; figures are None where it did not run there."""

    model_config = ConfigDict(extra="allow", frozen=True)

    accepted: bool | None = None
    reason: str = ""
    images: int = Field(0, ge=0)
    agreement: float | None = Field(None, ge=0, le=1)
    sqnr_db: float | None = None


class Metadata(BaseModel):
    """What all targets write. `artifact` and `host_only` are names beside the file itself; `attention_output`: rows and
    columns of patches of the second output, where there is one."""

    model_config = ConfigDict(extra="allow", frozen=True)

    target: Name
    precision: Precision
    artifact: RelativePath
    platform: Name | None = None
    warnings: list[str] = []
    attention_output: tuple[int, int] | None = None
    macs: int | None = Field(None, ge=0)
    params: int | None = Field(None, ge=0)
    host_only: list[Name] = []
    check: Check | None = None


def read_metadata(data: bytes, name: str) -> Json:
    """The values of a `metadata.json`, called `name` in errors. Raises VitedgeError where a value is wrong."""
    values = documents.parse_json(data, name)
    documents.validate(values, Metadata, name, todo="Build it again with `vitedge build`.", exit_code=1)
    return dict(values)
