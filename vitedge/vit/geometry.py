"""What attention sees of the grid of tokens, and how the grid changes between stages. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

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
class Reduction:
    """Keys and values of fewer tokens than there are queries (PVT, arXiv 2102.12122).

    A Linear makes one token of each block of them, side by side: a convolution whose kernel is its stride. Pooled, the
    mean of each part of the grid is taken first, the Linear reads single tokens, and GELU stands behind its LayerNorm
    (linear attention of PVT v2, arXiv 2106.13797).

    Attributes:
        size: (rows, columns) of tokens in a block; where pooled, of the grid that is left.
    """

    size: tuple[_Side, _Side]
    pooled: bool = False

    @property
    def joined(self) -> int:
        """Tokens that the Linear reads side by side."""
        return 1 if self.pooled else self.size[0] * self.size[1]

    def fits(self, grid: tuple[int, int]) -> bool:
        """Whether equal blocks make up such a grid."""
        return not (grid[0] % self.size[0] or grid[1] % self.size[1])

    def block(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of tokens that one is made of, in a grid that it fits."""
        return (grid[0] // self.size[0], grid[1] // self.size[1]) if self.pooled else self.size

    def left(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of tokens that keys and values are made of."""
        return self.size if self.pooled else (grid[0] // self.size[0], grid[1] // self.size[1])


@dataclass(frozen=True)
class Stage:
    """The beginning of a further stage, of half the rows and columns of tokens.

    Attributes:
        width: of the residual stream from there on.
        kernel: 2: a Linear makes one of 2 x 2 tokens (patch merging, Swin). 3: a convolution of stride 2 reads 3 x 3
            that overlap, zeros around the grid; LayerNorm stands before and after it (PVT v2).
    """

    width: Size
    kernel: Literal[2, 3] = 2

    @property
    def overlaps(self) -> bool:
        """Whether tokens are read by more than one of the new ones."""
        return self.kernel > STRIDE

    @property
    def padding(self) -> int:
        """Zeros around the grid, on each side."""
        return (self.kernel - 1) // 2


# Of the tokens that two neighbours of a further stage are made of.
STRIDE = 2
