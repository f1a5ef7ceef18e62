"""What attention sees of the grid of tokens, and how the grid changes between stages. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

# Bounds of what a document may ask for, before anything is allocated.
Size = Annotated[int, Field(strict=True, ge=1, le=2**16)]
Removable = Annotated[int, Field(strict=True, ge=0, le=2**20)]
_Side = Annotated[int, Field(strict=True, ge=1, le=2**6)]


@dataclass(frozen=True)
class Window:
    """Attention within windows of the grid of tokens, with a learned bias for each relative position (Swin, arXiv
    2103.14030).

    Attributes:
        size: (rows, columns) of tokens.
        shift: by how many (rows, columns) the windows are moved; along an axis of a single window they aren't.
        pad_first: whether zeros complete the grid's last windows before the shift (torchvision, transformers) or after
            it (timm).
    """

    size: tuple[_Side, _Side]
    shift: tuple[Removable, Removable] = (0, 0)
    pad_first: bool = True

    @property
    def area(self) -> int:
        """Tokens of a window."""
        return self.size[0] * self.size[1]

    def padded(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of the grid with its last windows completed."""
        rows, columns = (-(-side // size) * size for side, size in zip(grid, self.size, strict=True))
        return rows, columns

    def moved(self, grid: tuple[int, int]) -> tuple[int, int]:
        """By how many (rows, columns) the windows of such a grid are moved."""
        sides = zip(grid, self.size, self.shift, strict=True)
        rows, columns = (shift if side > size else 0 for side, size, shift in sides)
        return rows, columns


@dataclass(frozen=True)
class Stage:
    """The beginning of a further stage: of 2 x 2 tokens one is made, of another width (patch merging).

    width: of the residual stream from there on.
    """

    width: Size
