"""The patch embedding of a ViT on a convolutional network, layer by layer. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import ConfigDict, Field

LAST = "patch_embed"
# What the layers before the last are called in the graph, in front of their own names.
PREFIX = f"{LAST}.stem"
_Count = Annotated[int, Field(strict=True, ge=0, le=2**16)]
_Size = Annotated[int, Field(strict=True, ge=1, le=2**8)]
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class StemLayer:
    """One layer: a convolution or a pooling, and behind it a GroupNorm, a sum and an activation where it has them.

    Attributes:
        name: by which others read it.
        channels: of its output.
        kernel, stride: in both directions.
        padding: zeros around the input; "same" for as few as the output of ceil(input / stride) takes, one more at the
            bottom and the right where their number is odd (TensorFlow's).
        op: "conv", "max" or "mean" over a window.
        groups: of the GroupNorm; 0 for none. Batch norms are folded into the convolution.
        plus: the layer whose output is added; "" for none.
        act: behind the sum; "" for none.
        source: the layer that it reads; "" for the one before it, or the image.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=64)]
    channels: Annotated[int, Field(strict=True, ge=1, le=2**16)]
    kernel: _Size
    stride: _Size = 1
    padding: _Count | Literal["same"] = 0
    op: Literal["conv", "max", "mean"] = "conv"
    groups: _Count = 0
    plus: str = ""
    act: Literal["", "relu", "gelu", "hard_swish", "silu"] = ""
    source: str = ""

    @property
    def unit(self) -> str:
        """What its convolution is called in the graph."""
        return LAST if self.name == LAST else f"{PREFIX}.{self.name}"

    @property
    def value(self) -> str:
        """What its output is called in the graph."""
        return f"{self.unit}.out" if self.groups or self.plus or self.act else self.unit

    def __str__(self) -> str:
        kind = {"conv": "", "max": "maximum of ", "mean": "mean of "}[self.op]
        behind = (
            [f"GroupNorm of {self.groups}"] * bool(self.groups)
            + ["sum"] * bool(self.plus)
            + [self.act] * bool(self.act)
        )
        stride = [f"stride {self.stride}"] * (self.stride > 1)
        return ", ".join([f"{kind}{self.kernel}x{self.kernel}", *stride, *behind])

    def pads(self, side: int) -> tuple[int, int]:
        """Zeros (before, behind) an input of so many pixels."""
        if self.padding != "same":
            return self.padding, self.padding
        total = max((-(-side // self.stride) - 1) * self.stride + self.kernel - side, 0)
        return total // 2, total - total // 2


class Placed(NamedTuple):
    """A layer at its place: `source`, the layer that it reads (None: the image), `plus`, the one that it adds,
    `channels` that it reads, `pads` (top, left, bottom, right), `size` (height, width) of its output."""

    layer: StemLayer
    source: StemLayer | None
    plus: StemLayer | None
    channels: int
    pads: tuple[int, int, int, int]
    size: tuple[int, int]

    @property
    def source_name(self) -> str:
        """Of the layer that it reads; "" for the image."""
        return self.source.name if self.source else ""

    @property
    def macs(self) -> int:
        """MACs of its convolution."""
        height, width = self.size
        per_output = self.layer.kernel**2 * self.channels * self.layer.channels
        return height * width * per_output if self.layer.op == "conv" else 0

    @property
    def params(self) -> int:
        """Parameters of its convolution and its GroupNorm."""
        layer = self.layer
        conv = self.channels * layer.kernel**2 * layer.channels + layer.channels if layer.op == "conv" else 0
        return conv + (2 * layer.channels if layer.groups else 0)


@dataclass(frozen=True)
class Stem:
    """The layers in the order in which they are computed. The last, `patch_embed`, writes the residual stream: a
    convolution with nothing behind it.

    norm_eps: epsilon of every GroupNorm.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    layers: Annotated[tuple[StemLayer, ...], Field(min_length=1, max_length=2**10)]
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-5

    def __post_init__(self) -> None:
        last, names = self.layers[-1], [layer.name for layer in self.layers]
        if last.name != LAST or last.op != "conv" or last.value != last.unit or len(set(names)) < len(names):
            raise ValueError(f"a stem ends with the convolution {LAST!r}, and its names are different")
        for at, layer in enumerate(self.layers):
            if not {layer.source, layer.plus} <= {"", *names[:at]}:
                raise ValueError(f"{layer.name} reads a layer that is not before it")
            if layer.groups and layer.channels % layer.groups:
                raise ValueError(f"{layer.groups} groups don't divide the {layer.channels} channels of {layer.name}")

    def placed(self, channels: int, image: tuple[int, int]) -> list[Placed]:
        """The layers for images of so many channels and (height, width) pixels."""
        found: dict[str, Placed] = {}
        for at, layer in enumerate(self.layers):
            source = layer.source or (self.layers[at - 1].name if at else "")
            read = found.get(source)
            inputs, sides = (read.layer.channels, read.size) if read else (channels, image)
            (top, bottom), (left, right) = (layer.pads(side) for side in sides)
            height, width = ((side + sum(layer.pads(side)) - layer.kernel) // layer.stride + 1 for side in sides)
            if layer.op != "conv" and inputs != layer.channels:
                raise ValueError(f"{layer.name} pools {inputs} channels, not {layer.channels}")
            if layer.op == "mean" and any((top, left, bottom, right)):
                raise ValueError(f"{layer.name} takes the mean over padding")
            other = found.get(layer.plus)
            if other and (other.layer.channels, other.size) != (layer.channels, (height, width)):
                raise ValueError(f"{layer.name} and {layer.plus} have different shapes")
            pads = (top, left, bottom, right)
            plus = other.layer if other else None
            found[layer.name] = Placed(layer, read.layer if read else None, plus, inputs, pads, (height, width))
        return list(found.values())
