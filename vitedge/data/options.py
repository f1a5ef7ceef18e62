"""Which data set, and which of its columns. Imports no numpy: the configuration holds it."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Annotated

from pydantic import Field

from vitedge.options import EXPERT, Options


class DataColumns(Options):
    """The columns of a Parquet file or of a data set of the Hub."""

    image_column: Annotated[str | None, EXPERT] = Field(None, description="Of a table; found by its type by default.")
    label_column: Annotated[str | None, EXPERT] = Field(None, description="Of a table; found by its type by default.")

    def of(self, data: str | None) -> str | None:
        """`data` with the names of its columns, as `open_dataset` takes it; None where it is None."""
        return data and with_columns(data, self.image_column, self.label_column)


def with_columns(data: str, image: str | None, label: str | None, part: str | None = None) -> str:
    """`data` with the names of its columns and of its part, as `split_columns` reads them."""
    named = {key: value for key, value in (("image", image), ("label", label), ("part", part)) if value}
    return f"{data}?{urllib.parse.urlencode(named)}" if named else data


def split_columns(data: str) -> tuple[str, str | None, str | None, str | None]:
    """The path in `data`, and what it names: the columns of image and label, and the part."""
    path, mark, query = data.rpartition("?")
    if not mark or Path(data).exists():
        return data, None, None, None
    values = dict(urllib.parse.parse_qsl(query))
    return path, values.get("image"), values.get("label"), values.get("part")
