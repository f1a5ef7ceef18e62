"""What a model says of itself. Every step works on these lists, never on a family of models."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitedge.vit.config import ViTConfig
from vitedge.vit.convolution import Convolution, ConvStem

if TYPE_CHECKING:
    from vitedge.vit.layers import Block, Register, Site


@dataclass(frozen=True)
class Reader:
    """A LayerNorm on a residual stream, and the Linears that read what it puts out; `site` stands between them.

    A Linear may read several tokens of it side by side, as many as its inputs are wider than the LayerNorm.

    register: stands between LayerNorm and site where attention reads sink tokens as a constant.
    tokens: how many the LayerNorm and the Linears read side by side (patch merging).
    """

    site: str
    norm: nn.LayerNorm
    linears: tuple[nn.Linear, ...]
    register: Register | None = None
    tokens: int = 1

    @property
    def offset(self) -> Tensor:
        """The parameter that is added to what every Linear reads [C]."""
        return self.norm.bias if self.register is None else self.register.row

    def spread(self, channels: Tensor, linear: nn.Linear) -> Tensor:
        """Something of the LayerNorm's channels [C], for each input of the Linear."""
        return channels.repeat(linear.in_features // len(channels))

    def rows(self) -> Tensor:
        """All that the channels are multiplied by, [n, C]."""
        width = len(self.norm.weight)
        return torch.cat([linear.weight.reshape(-1, width) for linear in self.linears])

    @property
    def gated_linears(self) -> tuple[nn.Linear, ...]:
        """The Linears, and the register's gate, which reads what LayerNorm puts out."""
        return self.linears if self.register is None else (*self.linears, self.register.gate)


@dataclass(frozen=True)
class Writer:
    """A parameter that is added to a residual stream; `axis`: its axis of channels.

    embedding: whether it writes to the beginning of the stream, before the first block.
    """

    parameter: Tensor
    axis: int
    embedding: bool = False

    @property
    def width(self) -> int:
        """Of the stream."""
        return self.parameter.shape[self.axis]

    def columns(self) -> Tensor:
        """[C, n], float64: every vector that it may add."""
        return self.parameter.detach().double().movedim(self.axis, 0).reshape(self.width, -1)


@dataclass(frozen=True)
class Stream:
    """A residual stream: all that a rotation or a centring of its channels is folded into.

    Attributes:
        width: its channels.
        writers, readers: in the order of the data flow.
        sites: names of the sites that show it.
    """

    width: int
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    sites: tuple[str, ...]

    @property
    def mean_unseen(self) -> bool:
        """Whether no reader sees a token's mean over channels: each LayerNorm reads single tokens."""
        return all(reader.tokens == 1 for reader in self.readers)


class Architecture(nn.Module):
    """Normalised images float32 [B, channels, H, W] -> logits [B, classes], in steps that can be taken one by one.

    A family of models is a subclass. What a block holds (`Attention`, `MLP`, their Linears and widths) is what pruning
    cuts; each block computes the tokens that the pool reads and no others (the exact cut), which it knows by itself.
    """

    config: ViTConfig
    stem: ConvStem | None
    patch_embed: Convolution
    blocks: nn.ModuleList
    head: nn.Linear
    heads: nn.ModuleList

    def embed(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> the residual stream [B, N, C] before the first block."""
        raise NotImplementedError

    def pool(self, x: Tensor) -> tuple[Tensor, ...]:
        """The residual stream after the last block [B, N, C] -> what each head reads [B, C]."""
        raise NotImplementedError

    def streams(self) -> tuple[Stream, ...]:
        """The residual streams, one a stage; none where LayerNorms write to them, which nothing can be folded into."""
        raise NotImplementedError

    def sites(self) -> OrderedDict[str, Site]:
        """Name in the exported graph -> site, in the order of the data flow."""
        raise NotImplementedError

    def linears(self) -> OrderedDict[str, nn.Linear | Convolution]:
        """Name -> layer with a weight matrix, in the order of the data flow; the names stand in the ONNX graph."""
        raise NotImplementedError

    def encoder(self) -> Iterator[Block]:
        """The blocks, typed."""
        return iter(self.blocks)  # type: ignore[arg-type]

    def head_list(self) -> tuple[nn.Linear, ...]:
        """The head, and those of further pooled parts, whose outputs are added."""
        return (self.head, *self.heads)  # type: ignore[arg-type]

    def run_block(self, index: int, x: Tensor) -> Tensor:
        """Block `index` on the residual stream."""
        return self.blocks[index](x)

    def classify(self, x: Tensor) -> Tensor:
        """The residual stream after the last block [B, N, C] -> logits [B, classes]."""
        parts = [head(part) for head, part in zip(self.head_list(), self.pool(x), strict=True)]
        logits = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        return F.normalize(logits, dim=-1) if self.config.normalize else logits

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for index in range(len(self.blocks)):
            x = self.run_block(index, x)
        return self.classify(x)

    def readers(self) -> Iterator[Reader]:
        """The readers of all streams, in the order of the data flow."""
        for stream in self.streams():
            yield from stream.readers

    def fresh(self, config: ViTConfig) -> Architecture:
        """A model of the same family with another configuration, its weights not set."""
        return type(self)(config)  # type: ignore[arg-type]

    def rotatable(self) -> Architecture:
        """This model, or one that computes the same and whose streams are written to by parameters alone."""
        return self

    def reconfigure(self, index: int, **changes: Any) -> None:
        """Changes the configuration of block `index`, wherever the model keeps it."""
        self.config = self.config.with_block(index, **changes)
        list(self.encoder())[index].set_config(self.config.blocks[index])
