"""Types of what a description of a model may say, bounded: it is data that somebody may have handed over."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, le=2**20, strict=True)]
# timm's word for no head is 0 classes.
ClassCount = Annotated[int, Field(ge=0, le=2**20, strict=True)]
Side = Annotated[int, Field(ge=1, le=2**15, strict=True)]
Eps = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class Settings(BaseModel):
    """A description whose other keys say nothing that matters here."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
