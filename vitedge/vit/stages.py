"""How the tokens of a further stage are made of those of the one before, and how keys and values come from fewer of
them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitedge.vit.convolution import Convolution, from_grid, to_grid
from vitedge.vit.geometry import STRIDE, Reduction, Stage
from vitedge.vit.windows import to_blocks

Site = Callable[[], nn.Module]


class Downsample(nn.Module):
    """Patch merging: of 2 x 2 tokens side by side, row by row, a Linear makes one; LayerNorm before or after it (Swin,
    arXiv 2103.14030)."""

    def __init__(self, before: int, width: int, grid: tuple[int, int], eps: float, site: Site, *, post: bool) -> None:
        super().__init__()
        self.grid, self.post_norm = grid, post
        self.norm = nn.LayerNorm(width if post else 4 * before, eps=eps)
        self.linear = nn.Linear(4 * before, width)
        self.joined_site, self.norm_site, self.site = site(), site(), site()

    @property
    def product(self) -> nn.Linear | Convolution:
        """The layer with a weight matrix."""
        return self.linear

    def norms(self) -> dict[str, nn.LayerNorm]:
        """Its LayerNorms, by what their sites' names end with."""
        return {"_norm": self.norm}

    def sites(self) -> dict[str, nn.Module]:
        """What their names end with -> sites, see `BlockConfig.stage_sites`."""
        return {"_joined": self.joined_site, "_norm": self.norm_site, "": self.site}

    def forward(self, x: Tensor) -> Tensor:
        """The tokens of the stage before [B, 4 * rows * columns, C] -> [B, rows * columns, width]."""
        rows, columns = self.grid
        joined = to_blocks(x, (2 * rows, 2 * columns), (2, 2)).reshape(-1, rows * columns, 4 * x.shape[-1])
        if self.post_norm:
            return self.norm_site(self.norm(self.site(self.linear(self.joined_site(joined)))))
        return self.site(self.linear(self.norm_site(self.norm(joined))))


class ConvDownsample(nn.Module):
    """A convolution of stride 2 over overlapping tokens, LayerNorm before and after it (PVT v2, arXiv 2106.13797)."""

    def __init__(
        self, before: int, stage: Stage, grid: tuple[int, int], eps: float, behind_conv: float, site: Site
    ) -> None:
        super().__init__()
        self.grid = grid
        self.norm_input = nn.LayerNorm(before, eps=eps)
        self.conv = Convolution(before, stage.width, stage.kernel, STRIDE, (stage.padding,) * 4)
        self.norm = nn.LayerNorm(stage.width, eps=behind_conv)
        self.input_site, self.site, self.norm_site = site(), site(), site()

    @property
    def product(self) -> nn.Linear | Convolution:
        """The layer with a weight matrix."""
        return self.conv

    def norms(self) -> dict[str, nn.LayerNorm]:
        """Its LayerNorms, by what their sites' names end with."""
        return {"_input": self.norm_input, "_norm": self.norm}

    def sites(self) -> dict[str, nn.Module]:
        """What their names end with -> sites, see `BlockConfig.stage_sites`."""
        return {"_input": self.input_site, "": self.site, "_norm": self.norm_site}

    def forward(self, x: Tensor) -> Tensor:
        """The tokens of the stage before [B, 4 * rows * columns, C] -> [B, rows * columns, width]."""
        rows, columns = self.grid
        x = self.input_site(to_grid(self.norm_input(x), (STRIDE * rows, STRIDE * columns)))
        return self.norm_site(self.norm(self.site(from_grid(self.conv(x)))))


class ReducedTokens(nn.Module):
    """What keys and values are made of where they are of fewer tokens: see `geometry.Reduction`."""

    means: Tensor | None

    def __init__(self, width: int, reduction: Reduction, grid: tuple[int, int], eps: float, site: Site) -> None:
        super().__init__()
        self.reduction, self.grid = reduction, grid
        self.linear = nn.Linear(reduction.joined * width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.act: nn.Module = nn.GELU() if reduction.pooled else nn.Identity()
        means = None if reduction.fits(grid) else mean_table(grid, reduction.size)
        self.register_buffer("means", means, persistent=False)
        self.input_site, self.site, self.norm_site, self.act_site = site(), site(), site(), site()

    def sites(self) -> dict[str, nn.Module]:
        """Name behind the attention's -> site, see `BlockConfig.reduction_sites`."""
        names = ("reduce_input", "reduce", "reduce_norm", "reduce_gelu")
        return dict(zip(names, (self.input_site, self.site, self.norm_site, self.act_site), strict=True))

    def read(self, x: Tensor) -> Tensor:
        """Tokens [B, rows * columns, C] as the Linear reads them, [B, left, joined * C]."""
        if self.means is not None:
            return self.means @ x
        rows, columns = self.reduction.left(self.grid)
        blocks = to_blocks(x, self.grid, self.reduction.block(self.grid))
        blocks = blocks.mean(1) if self.reduction.pooled else blocks
        return blocks.reshape(len(x), rows * columns, -1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, rows * columns, C] -> [B, left, C]."""
        x = self.norm_site(self.norm(self.site(self.linear(self.input_site(self.read(x))))))
        return self.act_site(self.act(x)) if self.reduction.pooled else x


def mean_table(grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling as a matrix [size, grid], both row by row: part i of n reaches from floor(i * side / n)
    to ceil((i + 1) * side / n)."""
    tables = []
    for side, parts in zip(grid, size, strict=True):
        table = torch.zeros(parts, side, dtype=torch.float64, device="cpu")
        for i in range(parts):
            table[i, i * side // parts : -(-(i + 1) * side // parts)] = 1
        tables.append(table / table.sum(1, keepdim=True))
    return torch.kron(*tables).float()


def means_of_read(x: Tensor, grid: tuple[int, int], by: Stage | Reduction) -> Tensor:
    """Of tokens [B, rows * columns, C] the mean of those that each new one is made of, [B, new, C]."""
    kernel: tuple[int, int]
    if isinstance(by, Stage):
        kernel, stride, padding = (by.kernel, by.kernel), (STRIDE, STRIDE), by.padding
    elif by.fits(grid):
        kernel, stride, padding = by.block(grid), by.block(grid), 0
    else:
        return mean_table(grid, by.size) @ x
    return from_grid(F.avg_pool2d(to_grid(x, grid), kernel, stride, padding, count_include_pad=False))
