"""The Vision Transformer that every step works on (Dosovitskiy et al., arXiv 2010.11929; torchvision's layout).

q, k, v and the output projection are Linears of their own, and widths may differ by layer. Every activation that
can be observed or quantised passes through a `Site`; its dotted name in `Architecture.sites()` is also the
name of the value in the exported ONNX graph.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitedge.tokens.matching import join_sizes, split_sizes
from vitedge.tokens.modules import TokenMerge
from vitedge.vit.architecture import Architecture, Reader, Stream, Writer
from vitedge.vit.config import BlockConfig, ViTConfig
from vitedge.vit.names import TOKENS


class Site(nn.Identity):
    """A named place in the data flow. Observers hook it; QAT replaces it by a fake quantiser."""


class MatMul(nn.Module):
    """The product of two activations. A simulation of integer kernels replaces it."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


def _untouched(module: nn.Module) -> bool:
    return type(module) in (Site, MatMul, nn.Softmax) and not module._forward_hooks and not module._forward_pre_hooks


class Attention(nn.Module):
    """Multi-head attention of `x` [B, N, C] to itself; with `queries`, only for the first tokens.

    `sizes` [B, N]: how many tokens each one stands for; it counts as often (ToMe's proportional attention).
    """

    def __init__(self, width: int, config: BlockConfig) -> None:
        super().__init__()
        self.config = config
        qk, v = config.heads * config.qk_dim, config.heads * config.v_dim
        self.q = nn.Linear(width, qk)
        self.k = nn.Linear(width, qk)
        self.v = nn.Linear(width, v)
        self.out = nn.Linear(v, width)
        self.q_site, self.k_site, self.v_site = Site(), Site(), Site()
        self.scores_site, self.probs_site, self.context_site, self.out_site = Site(), Site(), Site(), Site()
        self.scores_product, self.softmax, self.context_product = MatMul(), nn.Softmax(-1), MatMul()

    def heads(self, x: Tensor, dim: int) -> Tensor:
        """[B, N, heads * dim] -> [B, heads, N, dim]."""
        return x.unflatten(-1, (self.config.heads, dim)).transpose(1, 2)

    def forward(self, x: Tensor, queries: int | None = None, sizes: Tensor | None = None) -> Tensor:
        c, bias = self.config, None if sizes is None else sizes.log()[:, None, None]
        q = self.q(x if queries is None else x[:, :queries])
        # As in the exported graph, where q's weights carry the scale.
        q = self.heads(self.q_site(q if c.scale == 1 else q * c.scale), c.qk_dim)
        k = self.heads(self.k_site(self.k(x)), c.qk_dim)
        v = self.heads(self.v_site(self.v(x)), c.v_dim)
        inner = (self.scores_product, self.scores_site, self.softmax, self.probs_site, self.context_product)
        if all(_untouched(module) for module in inner):
            context = F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype), scale=1.0)
        else:
            scores = self.scores_site(self.scores_product(q, k.transpose(-1, -2)))
            scores = scores if bias is None else scores + bias
            context = self.context_product(self.probs_site(self.softmax(scores)), v)
        context = self.context_site(context.transpose(1, 2).flatten(2))
        return self.out_site(self.out(context))


class MLP(nn.Module):
    """fc1, GELU in its erf form, fc2: [B, N, C] -> [B, N, C]."""

    def __init__(self, width: int, config: BlockConfig) -> None:
        super().__init__()
        self.config = config
        self.fc1 = nn.Linear(width, config.hidden)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(config.hidden, width)
        self.fc1_site, self.fc2_site = Site(), Site()
        # A group of units is a value of its own in the exported graph, with its own scale.
        self.gelu_sites = nn.ModuleList(Site() for _ in config.spans())

    def set_config(self, config: BlockConfig) -> None:
        """Takes over a configuration of the same widths."""
        if config.groups != self.config.groups:
            self.gelu_sites = nn.ModuleList(Site() for _ in config.spans())
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.gelu(self.fc1_site(self.fc1(x)))
        if len(self.gelu_sites) == 1:
            hidden = self.gelu_sites[0](hidden)
        elif not all(_untouched(site) for site in self.gelu_sites):
            parts = hidden.split(self.config.groups, dim=-1)
            hidden = torch.cat([site(p) for site, p in zip(self.gelu_sites, parts, strict=True)], dim=-1)
        return self.fc2_site(self.fc2(hidden))


class Block(nn.Module):
    """Pre-norm encoder block. `attention` or `mlp` is None where pruning removed it.

    queries: how many of the first tokens are needed after it; all where None. k and v are computed on all tokens, the
    rest on these alone: nothing else reaches the head. prefix: tokens that are never merged. A stream is [B, N, C], or
    [B, N, C + 1] once tokens were merged (see `vitedge.tokens`).
    """

    def __init__(
        self, width: int, eps: float, config: BlockConfig, queries: int | None = None, prefix: int = 1
    ) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.queries = queries
        self.attention = Attention(width, config) if config.heads else None
        self.mlp = MLP(width, config) if config.hidden else None
        self.norm1 = nn.LayerNorm(width, eps=eps) if config.heads else None
        self.norm2 = nn.LayerNorm(width, eps=eps) if config.hidden else None
        self.norm1_site, self.norm2_site = Site(), Site()
        self.residual1_site, self.residual2_site = Site(), Site()
        self.merge = TokenMerge(config.merge, width, prefix, Site()) if config.merge else None

    def set_config(self, config: BlockConfig) -> None:
        """Takes over a configuration of the same widths, in both halves."""
        self.config = config
        if self.attention is not None:
            self.attention.config = config
        if self.mlp is not None:
            self.mlp.set_config(config)

    def attend(self, x: Tensor) -> Tensor:
        """The first half: x + attention(norm1(x)), for the tokens that are needed after it; then they are merged."""
        x, sizes = split_sizes(x, self.width)
        residual = x if self.queries is None else x[:, : self.queries]
        if self.attention is not None and self.norm1 is not None:
            attended = self.attention(self.norm1_site(self.norm1(x)), self.queries, sizes)
            residual = self.residual1_site(residual + attended)
        if self.queries is not None:
            return residual
        stream = join_sizes(residual, sizes)
        return stream if self.merge is None else self.merge(stream)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half: x + mlp(norm2(x))."""
        if self.mlp is None or self.norm2 is None:
            return x
        x, sizes = split_sizes(x, self.width)
        return join_sizes(self.residual2_site(x + self.mlp(self.norm2_site(self.norm2(x)))), sizes)

    def forward(self, x: Tensor) -> Tensor:
        return self.feed_forward(self.attend(x))


class VisionTransformer(Architecture):
    """Normalised images float32 [B, channels, H, W] -> logits [B, classes].

    The last block computes k and v on all tokens and the rest on [CLS] alone: the sites see what the exported graph
    computes.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = nn.Conv2d(config.channels, config.width, config.patch_size, config.patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embedding = nn.Parameter(torch.zeros(1, config.tokens, config.width))
        self.patch_site, self.embed_site = Site(), Site()
        self.blocks = nn.ModuleList(
            Block(config.width, config.norm_eps, b, config.queries(i), config.prefix)
            for i, b in enumerate(config.blocks)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.norm_site = Site()
        self.head = nn.Linear(config.width, config.classes)

    def embed(self, x: Tensor) -> Tensor:
        patches = self.patch_site(self.patch_embed(x).flatten(2).transpose(1, 2))
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1)
        return self.embed_site(tokens + self.pos_embedding)

    def pool(self, x: Tensor) -> Tensor:
        return self.norm_site(self.norm(x[:, 0, : self.config.width]))

    def streams(self) -> tuple[Stream, ...]:
        conv = self.patch_embed
        embedding = [(conv.weight, 0), (conv.bias, 0), (self.class_token, 2), (self.pos_embedding, 2)]
        writers = [Writer(p, axis, embedding=True) for p, axis in embedding if p is not None]
        readers = []
        for i, block in enumerate(self.encoder()):
            if block.attention is not None and block.norm1 is not None:
                a = block.attention
                readers.append(Reader(f"block{i}.norm1", block.norm1, (a.q, a.k, a.v)))
                writers += [Writer(a.out.weight, 0), Writer(a.out.bias, 0)]
            if block.mlp is not None and block.norm2 is not None:
                readers.append(Reader(f"block{i}.norm2", block.norm2, (block.mlp.fc1,)))
                writers += [Writer(block.mlp.fc2.weight, 0), Writer(block.mlp.fc2.bias, 0)]
        readers.append(Reader("norm", self.norm, (self.head,)))
        sites = tuple(n for n in self.sites() if n == "embed" or "residual" in n or n.endswith(".merged"))
        return (Stream(self.config.width, tuple(writers), tuple(readers), sites),)

    def sites(self) -> OrderedDict[str, Site]:
        named: OrderedDict[str, Site] = OrderedDict(patches=self.patch_site, embed=self.embed_site)
        for i, block in enumerate(self.encoder()):
            name = f"block{i}"
            if block.attention is not None:
                a = block.attention
                named[f"{name}.norm1"] = block.norm1_site
                for part in ("q", "k", "v", "scores", "probs", "context", "out"):
                    named[f"{name}.attention.{part}"] = getattr(a, f"{part}_site")
                named[f"{name}.residual1"] = block.residual1_site
            if block.merge is not None:
                named[f"{name}.merged"] = cast("Site", block.merge.site)
            if block.mlp is not None:
                named[f"{name}.norm2"] = block.norm2_site
                named[f"{name}.mlp.fc1"] = block.mlp.fc1_site
                for (suffix, _, _), site in zip(block.config.spans(), block.mlp.gelu_sites, strict=True):
                    named[f"{name}.mlp.gelu{suffix}"] = cast("Site", site)
                named[f"{name}.mlp.fc2"] = block.mlp.fc2_site
                named[f"{name}.residual2"] = block.residual2_site
        named["norm"] = self.norm_site
        return named

    def linears(self) -> OrderedDict[str, nn.Linear | nn.Conv2d]:
        named: OrderedDict[str, nn.Linear | nn.Conv2d] = OrderedDict(patch_embed=self.patch_embed)
        for i, block in enumerate(self.encoder()):
            if block.attention is not None:
                for part in ("q", "k", "v", "out"):
                    named[f"block{i}.attention.{part}"] = getattr(block.attention, part)
            if block.mlp is not None:
                named[f"block{i}.mlp.fc1"] = block.mlp.fc1
                named[f"block{i}.mlp.fc2"] = block.mlp.fc2
        named["head"] = self.head
        return named


def init_weights(model: VisionTransformer, seed: int = 0) -> VisionTransformer:
    """Random weights as ViTs are trained from (truncated normal 0.02, Xavier Linears); the head is not zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
        elif name in TOKENS:
            nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
        elif parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter.view(len(parameter), -1), generator=generator)
        else:
            nn.init.normal_(parameter, std=1e-6, generator=generator)
    return model
