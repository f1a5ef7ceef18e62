"""The convolutions that make the patches: one of the pixels, or a stem of several with what stands between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from vitedge.vit.stem import Placed

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "": nn.Identity,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "hard_swish": nn.Hardswish,
    "silu": nn.SiLU,
}


def padded(x: Tensor, pads: tuple[int, int, int, int], value: float = 0.0) -> Tensor:
    """[B, C, H, W] with `pads` (top, left, bottom, right) around it."""
    top, left, bottom, right = pads
    return F.pad(x, (left, right, top, bottom), value=value) if any(pads) else x


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    pads: tuple[int, int, int, int],
    groups: int = 1,
) -> Tensor:
    """A convolution of [B, in, H, W] with `pads` (top, left, bottom, right) zeros around it."""
    if pads[:2] == pads[2:]:
        return F.conv2d(x, weight, bias, stride, pads[:2], groups=groups)
    return F.conv2d(padded(x, pads), weight, bias, stride, groups=groups)


def to_grid(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens [B, rows * columns, C] -> [B, C, rows, columns], as convolutions read them."""
    return x.transpose(1, 2).unflatten(2, grid)


def from_grid(x: Tensor) -> Tensor:
    """The inverse of `to_grid`."""
    return x.flatten(2).transpose(1, 2)


class Convolution(nn.Conv2d):
    """[B, in, H, W] -> [B, out, rows, columns], with `pads` (top, left, bottom, right) zeros around the input;
    depthwise where `groups` is the number of channels."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        groups: int = 1,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups)
        self.pads = pads

    @classmethod
    def of(cls, placed: Placed) -> Convolution:
        """That of a stem's layer."""
        layer = placed.layer
        return cls(placed.channels, layer.channels, layer.kernel, layer.stride, placed.pads)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias, self.stride, self.pads, self.groups)

    def columns(self, x: Tensor) -> Tensor:
        """What each output reads, [B, rows * columns, in * kernel * kernel]: the convolution's input as a Linear's."""
        return F.unfold(padded(x, self.pads), self.kernel_size, stride=self.stride).transpose(1, 2)


class StemBlock(nn.Module):
    """One layer of a stem: see `stem.StemLayer`."""

    def __init__(self, placed: Placed, eps: float, site: nn.Module) -> None:
        super().__init__()
        self.placed = placed
        layer = placed.layer
        self.conv = Convolution.of(placed) if layer.op == "conv" else None
        self.norm = nn.GroupNorm(layer.groups, layer.channels, eps=eps) if layer.groups else None
        self.act, self.site = ACTIVATIONS[layer.act](), site

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        layer = self.placed.layer
        if self.conv is not None:
            x = self.conv(x)
        elif layer.op == "max":
            x = F.max_pool2d(padded(x, self.placed.pads, float("-inf")), layer.kernel, layer.stride)
        else:
            x = F.avg_pool2d(x, layer.kernel, layer.stride)
        x = x if self.norm is None else self.norm(x)
        return self.site(self.act(x if plus is None else x + plus))


class ConvStem(nn.Module):
    """All layers of a stem but the last: normalised images [B, C, H, W] -> what the last one reads."""

    def __init__(self, placed: list[Placed], eps: float, site: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.site = site()
        self.layers = nn.ModuleList(StemBlock(p, eps, site()) for p in placed[:-1])
        self.last = placed[-1].source_name
        # The last layer that reads each output.
        self.read_by = {name: p.layer.name for p in placed for name in (p.source_name, p.layer.plus)}

    def blocks(self) -> Iterator[StemBlock]:
        """The layers, typed, in the order of the data flow."""
        return iter(self.layers)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        values = self.start(x)
        for index in range(len(self.layers)):
            self.step(index, values)
        return values[self.last]

    def start(self, x: Tensor) -> dict[str, Tensor]:
        """What `step` goes on from: the image, under ""."""
        return {"": self.site(x)}

    def step(self, index: int, values: dict[str, Tensor]) -> None:
        """The layer of that index. values: outputs by layer; it takes out those that no later layer reads."""
        block = cast("StemBlock", self.layers[index])
        name, source, plus = block.placed.layer.name, block.placed.source_name, block.placed.layer.plus
        values[name] = block(values[source], values[plus] if plus else None)
        for read in {source, plus} & values.keys():
            if self.read_by[read] == name:
                del values[read]
