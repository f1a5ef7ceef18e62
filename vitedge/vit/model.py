"""The Vision Transformer that every step works on (Dosovitskiy et al., arXiv 2010.11929; torchvision's layout).

The dotted name of a site in `Architecture.sites()` is also the name of the value in the exported ONNX graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from vitedge.tokens.matching import split_sizes
from vitedge.vit.architecture import Architecture, Reader, Stream, Writer
from vitedge.vit.config import ViTConfig
from vitedge.vit.convolution import Convolution, ConvStem
from vitedge.vit.layers import AttentionPool, Block, Site
from vitedge.vit.names import block_index, is_added, is_stream
from vitedge.vit.products import NORMALIZED
from vitedge.vit.rope import rope_table
from vitedge.vit.stages import Downsample


class VisionTransformer(Architecture):
    """Normalised images float32 [B, channels, H, W] -> logits or an embedding [B, classes] ([B, patches, classes]).

    Where prefix tokens alone are pooled, the last block computes k and v on all tokens and the rest on these: the sites
    see what the exported graph computes.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width, eps = config.width, config.norm_eps
        if config.stem is None:
            self.stem = None
            self.patch_embed = Convolution(config.channels, width, config.patch_size, config.patch_size)
        else:
            placed = config.stem_layers()
            self.stem = ConvStem(placed, config.stem.norm_eps, Site)
            self.patch_embed = Convolution.of(placed[-1])
        self.class_token = nn.Parameter(torch.zeros(1, config.prefix, width)) if config.prefix else None
        self.pos_embedding = nn.Parameter(torch.zeros(1, config.tokens, width)) if config.positions else None
        self.patch_site, self.embed_site = Site(), Site()
        behind_conv = config.behind_conv
        self.pre_norm = nn.LayerNorm(width, eps=behind_conv) if config.norm_pre else None
        self.pre = nn.Linear(width, width) if config.pre_linear else None
        self.pre_norm_site, self.pre_site = Site(), Site()
        rope = rope_table(config)
        self.blocks = nn.ModuleList(
            Block(
                config.block_width(i),
                eps,
                block,
                config.queries(i),
                config.prefix,
                rope,
                config.block_grid(i),
                config.block_width(i - 1) if block.stage else 0,
                behind_conv,
            )
            for i, block in enumerate(config.blocks)
        )
        width = config.last_width
        self.norm = nn.LayerNorm(width, eps=eps)
        self.norm_site, self.mean_site = Site(), Site()
        self.pooling = AttentionPool(width, eps, config.pool_block) if config.pool_block else None
        self.head = nn.Linear(width, config.classes)
        self.heads = nn.ModuleList(nn.Linear(width, config.classes) for _ in config.pool[1:])

    def embed(self, x: Tensor) -> Tensor:
        x = x if self.stem is None else self.stem(x)
        tokens = self.patch_site(self.patch_embed(x).flatten(2).transpose(1, 2))
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1)
        tokens = self.embed_site(tokens if self.pos_embedding is None else tokens + self.pos_embedding)
        if self.pre_norm is not None:
            tokens = self.pre_norm_site(self.pre_norm(tokens))
        return tokens if self.pre is None else self.pre_site(self.pre(tokens))

    def pool(self, x: Tensor) -> tuple[Tensor, ...]:
        c, (x, sizes) = self.config, split_sizes(x, self.config.last_width)
        if c.pool_norm == "pooled":
            return (self.norm_site(self.norm(self.mean_site(self._mean(x, sizes)))),)
        if len(c.pool) == 1 and c.pool[0] in c.prefix_tokens:
            x = x[:, c.prefix_tokens.index(c.pool[0])]
            return (self.norm_site(self.norm(x)),)
        x = self.norm_site(self.norm(x))
        return tuple(self._part(part, x, sizes) for part in c.pool)

    def _part(self, part: str, x: Tensor, sizes: Tensor | None) -> Tensor:
        if part == "mean":
            return self.mean_site(self._mean(x, sizes))
        if part == "patches":
            return x[:, self.config.prefix :]
        if self.pooling is not None:
            return self.pooling(x, sizes)[:, 0]
        return x[:, self.config.prefix_tokens.index(part)]

    def _mean(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        x = x[:, self.config.prefix :]
        if sizes is None:
            return x.mean(1)
        weights = sizes[:, self.config.prefix :, None]
        return (x * weights).sum(1) / weights.sum(1)

    def streams(self) -> tuple[Stream, ...]:
        return () if self.config.post_norm or self.config.overlaps else self._streams()

    def _streams(self) -> tuple[Stream, ...]:
        """One a stage, for their readers also where LayerNorms write to them. Those behind which a convolution reads
        are no readers: the zeros around its grid have no part of what would be folded."""
        if self.pre is not None:
            embedding: list[tuple[Tensor | None, int]] = [(self.pre.weight, 0), (self.pre.bias, 0)]
        else:
            conv = self.patch_embed
            embedding = [(conv.weight, 0), (conv.bias, 0), (self.class_token, 2), (self.pos_embedding, 2)]
        writers = [Writer(p, axis, embedding=True) for p, axis in embedding if p is not None]
        start = "pre" if self.pre is not None else "pre_norm" if self.pre_norm is not None else "embed"
        streams, readers, sites = [], [], [start]
        for i, block in enumerate(self.encoder()):
            if (down := block.downsample) is not None:
                if isinstance(down, Downsample):
                    readers.append(Reader(f"block{i}.downsample_norm", down.norm, (down.linear,), tokens=4))
                streams.append(Stream(writers[0].width, tuple(writers), tuple(readers), tuple(sites)))
                writers = [
                    Writer(p, 0, embedding=True) for p in (down.product.weight, down.product.bias) if p is not None
                ]
                readers, sites = [], []
            if block.attention is not None and block.norm1 is not None:
                a = block.attention
                first = (a.q, a.k, a.v) if a.reduction is None else (a.q, a.reduction.linear)
                readers.append(Reader(f"block{i}.norm1", block.norm1, first, block.norm1_register))
                if a.reduction is not None and not a.reduction.reduction.pooled:
                    readers.append(Reader(f"block{i}.attention.reduce_norm", a.reduction.norm, (a.k, a.v)))
                writers += [Writer(a.out.weight, 0), Writer(a.out.bias, 0)]
            if block.mlp is not None and block.norm2 is not None:
                marker = block.norm2_marker
                linears = block.mlp.inputs() if marker is None else (*block.mlp.inputs(), marker.gate)
                readers.append(Reader(f"block{i}.norm2", block.norm2, linears))
                writers += [Writer(block.mlp.fc2.weight, 0), Writer(block.mlp.fc2.bias, 0)]
                writers += [] if marker is None else [Writer(marker.row, 0)]
            sites += [n for n in self.sites() if block_index(n) == i and is_stream(n)]
        pool = self.pooling
        last = self.head_list() if pool is None else (pool.attention.k, pool.attention.v)
        readers.append(Reader("norm", self.norm, last))
        return (*streams, Stream(writers[0].width, tuple(writers), tuple(readers), tuple(sites)))

    def readers(self) -> Iterator[Reader]:
        if self.pre_norm is not None and self.pre is not None:
            yield Reader("pre_norm", self.pre_norm, (self.pre,))
        if self.config.post_norm:
            yield Reader("norm", self.norm, self.head_list())
        else:
            yield from (reader for stream in self._streams() for reader in stream.readers)
        if self.pooling is not None:
            yield Reader("pool.norm2", self.pooling.norm2, self.pooling.mlp.inputs())

    def rotatable(self) -> Architecture:
        if self.pre_norm is None or self.pre is not None or not self.streams():
            return self
        model = VisionTransformer(replace(self.config, pre_linear=True))
        pre = {"pre.weight": torch.eye(self.config.width), "pre.bias": torch.zeros(self.config.width)}
        model.load_state_dict(self.state_dict() | pre)
        return model.eval()

    def _parts(self) -> Iterator[tuple[str, Block | AttentionPool]]:
        yield from ((f"block{i}", block) for i, block in enumerate(self.encoder()))
        if self.pooling is not None:
            yield "pool", self.pooling

    def sites(self) -> OrderedDict[str, Site]:
        named: OrderedDict[str, Site] = OrderedDict()
        if self.stem is not None:
            named |= {NORMALIZED: cast("Site", self.stem.site)}
            named |= {b.placed.layer.value: cast("Site", b.site) for b in self.stem.blocks()}
        named |= {"patches": self.patch_site, "embed": self.embed_site}
        named |= {"pre_norm": self.pre_norm_site} if self.pre_norm is not None else {}
        named |= {"pre": self.pre_site} if self.pre is not None else {}
        after_mean = OrderedDict(norm=self.norm_site)
        if "mean" in self.config.pool:
            mean, after = ("pool.mean", self.mean_site), ("norm", self.norm_site)
            after_mean = OrderedDict([mean, after] if self.config.pool_norm == "pooled" else [after, mean])
        for name, block in self._parts():
            if isinstance(block, AttentionPool):
                named |= after_mean
            c, a = block.config, block.attention
            if isinstance(block, Block) and block.downsample is not None:
                down = block.downsample.sites()
                named |= {f"{name}.downsample{end}": cast("Site", down[end]) for end in c.stage_sites()}
            if a is not None:
                if isinstance(block, Block):
                    named[f"{name}.{c.reads[0]}"] = block.norm1_site
                if a.reduction is not None:
                    inner = a.reduction.sites()
                    named |= {f"{name}.attention.{part}": cast("Site", inner[part]) for part in c.reduction_sites()}
                for part in c.attention_sites():
                    named[f"{name}.attention.{part}"] = getattr(a, f"{part}_site")
                if isinstance(block, Block) and c.post_norm:
                    named[f"{name}.norm1"] = block.post_norm1_site
                if isinstance(block, Block):
                    named[f"{name}.residual1"] = block.residual1_site
            if isinstance(block, Block) and block.merge is not None:
                named[f"{name}.merged"] = cast("Site", block.merge.site)
            if block.mlp is not None:
                named[f"{name}.{c.reads[1]}"] = block.norm2_site
                for part in c.unit_sites()[:-1]:
                    named[f"{name}.mlp.{part}"] = getattr(block.mlp, f"{part}_site")
                for (suffix, _, _), site in zip(c.spans(), block.mlp.gelu_sites, strict=True):
                    named[f"{name}.mlp.gelu{suffix}"] = cast("Site", site)
                named[f"{name}.mlp.fc2"] = block.mlp.fc2_site
                if isinstance(block, Block) and c.post_norm:
                    named[f"{name}.norm2"] = block.post_norm2_site
                named[f"{name}.residual2"] = block.residual2_site
        return named | after_mean

    def linears(self) -> OrderedDict[str, nn.Linear | Convolution]:
        named: OrderedDict[str, nn.Linear | Convolution] = OrderedDict()
        if self.stem is not None:
            named |= {b.placed.layer.unit: b.conv for b in self.stem.blocks() if b.conv is not None}
        named |= {"patch_embed": self.patch_embed}
        named |= {"pre": self.pre} if self.pre is not None else {}
        for name, block in self._parts():
            if isinstance(block, Block) and block.downsample is not None:
                named[f"{name}.downsample"] = block.downsample.product
            if block.attention is not None:
                if block.attention.reduction is not None:
                    named[f"{name}.attention.reduce"] = block.attention.reduction.linear
                for part in ("q", "k", "v", "out") if isinstance(block, Block) else ("k", "v", "out"):
                    named[f"{name}.attention.{part}"] = getattr(block.attention, part)
            if block.mlp is not None:
                named |= {f"{name}.mlp.fc1": block.mlp.fc1}
                named |= {f"{name}.mlp.gate": block.mlp.gate} if block.mlp.gate is not None else {}
                named |= {f"{name}.mlp.depthwise": block.mlp.depthwise} if block.mlp.depthwise is not None else {}
                named |= {f"{name}.mlp.fc2": block.mlp.fc2}
        return named | OrderedDict(zip(self.config.heads(), self.head_list(), strict=True))


def init_weights(model: VisionTransformer, seed: int = 0) -> VisionTransformer:
    """Random weights as ViTs are trained from (truncated normal 0.02, Xavier Linears); the head is not zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
        elif is_added(name):
            nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
        elif parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter.view(len(parameter), -1), generator=generator)
        else:
            nn.init.normal_(parameter, std=1e-6, generator=generator)
    return model


def random_weights(config: ViTConfig, seed: int = 0) -> VisionTransformer:
    """A model of that configuration with random weights, in evaluation mode: for speed and size only."""
    return init_weights(VisionTransformer(config), seed).eval()
