"""The Vision Transformer that every step works on (Dosovitskiy et al., arXiv 2010.11929; torchvision's layout).

q, k, v and the output projection are Linears of their own, and widths may differ by layer. Every activation that
can be observed or quantised passes through a `Site`; its dotted name in `Architecture.sites()` is also the
name of the value in the exported ONNX graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitedge.tokens.matching import join_sizes, split_sizes
from vitedge.tokens.modules import TokenMerge
from vitedge.vit.architecture import Architecture, Reader, Stream, Writer
from vitedge.vit.config import BlockConfig, ViTConfig
from vitedge.vit.convolution import Convolution, ConvStem
from vitedge.vit.names import block_index, is_added, is_stream
from vitedge.vit.products import NORMALIZED
from vitedge.vit.rope import rope_table, turned
from vitedge.vit.windows import Downsample, WindowBias, from_windows, to_windows


class Site(nn.Identity):
    """A named place in the data flow. Observers hook it; QAT replaces it by a fake quantiser."""


class MatMul(nn.Module):
    """The product of two activations. A simulation of integer kernels replaces it."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


def _untouched(module: nn.Module) -> bool:
    return type(module) in (Site, MatMul, nn.Softmax) and not module._forward_hooks and not module._forward_pre_hooks


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), section 2 of arXiv 1606.08415; of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.702 * x).sigmoid()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "swiglu": nn.SiLU,
}


class UnitNorm(nn.Module):
    """Vectors [B, heads, N, dim] scaled to a norm of 1, times a number a head; times 1 with `heads` 0."""

    def __init__(self, heads: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads)) if heads else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=-1)
        return x if self.weight is None else x * self.weight[:, None, None]


class Attention(nn.Module):
    """Multi-head attention of `x` [B, N, C] to itself; with `queries`, only for the first tokens.

    `sizes` [B, N]: how many tokens each one stands for; it counts as often (ToMe's proportional attention).
    rope: what turns q and k by their place, as `rope.rope_table` makes it.
    grid: of tokens, where attention is kept within windows of it; x is then [B * windows, area, C].
    """

    rope: Tensor | None

    def __init__(
        self,
        width: int,
        config: BlockConfig,
        eps: float = 1e-6,
        rope: Tensor | None = None,
        grid: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.config, self.eps = config, eps
        qk, v = config.heads * config.qk_dim, config.heads * config.v_dim
        self.q = nn.Linear(width, qk)
        self.k = nn.Linear(width, qk)
        self.v = nn.Linear(width, v)
        self.out = nn.Linear(v, width)
        self.q_norm: nn.LayerNorm | UnitNorm | None = None
        self.k_norm: nn.LayerNorm | UnitNorm | None = None
        if config.cosine:
            self.q_norm, self.k_norm = UnitNorm(config.heads), UnitNorm()
        elif config.qk_norm:
            self.q_norm, self.k_norm = (nn.LayerNorm(config.qk_dim, eps=eps) for _ in range(2))
        self.register_buffer("rope", rope if config.rope else None, persistent=False)
        self.grid = grid
        self.bias = WindowBias(config.heads, config.window, grid) if config.window else None
        self.q_site, self.k_site, self.v_site = Site(), Site(), Site()
        self.q_norm_site, self.k_norm_site, self.q_rope_site, self.k_rope_site = Site(), Site(), Site(), Site()
        self.scores_site, self.probs_site, self.context_site, self.out_site = Site(), Site(), Site(), Site()
        self.scores_product, self.softmax, self.context_product = MatMul(), nn.Softmax(-1), MatMul()

    def like(self, config: BlockConfig) -> Attention:
        """Another one of these widths, its weights not set but for the LayerNorms of q and k."""
        new = Attention(self.out.out_features, config, self.eps, self.rope, self.grid)
        if config.qk_norm:
            new.q_norm, new.k_norm = self.q_norm, self.k_norm
        return new

    def heads(self, x: Tensor, dim: int) -> Tensor:
        """[B, N, heads * dim] -> [B, heads, N, dim]."""
        return x.unflatten(-1, (self.config.heads, dim)).transpose(1, 2)

    def placed(self, part: str, x: Tensor) -> Tensor:
        """q or k [B, heads, N, dim] as their product reads it: normalised, and turned by its place."""
        norm = self.q_norm if part == "q" else self.k_norm
        if norm is not None:
            x = norm(x)
            scale = self.config.scale if part == "q" else 1.0
            x = getattr(self, f"{part}_norm_site")(x if scale == 1 else x * scale)
        return x if self.rope is None else getattr(self, f"{part}_rope_site")(turned(x, self.rope))

    def forward(self, x: Tensor, queries: int | None = None, sizes: Tensor | None = None) -> Tensor:
        c, bias = self.config, None if sizes is None else sizes.log()[:, None, None]
        bias = bias if self.bias is None else self.bias(len(x))
        q = self.q(x if queries is None else x[:, :queries])
        # As in the exported graph, where q's weights, or those of its LayerNorm, carry the scale.
        q = self.q_site(q if c.scale == 1 or c.qk_norm else q * c.scale)
        q = self.placed("q", self.heads(q, c.qk_dim))
        k = self.placed("k", self.heads(self.k_site(self.k(x)), c.qk_dim))
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
    """fc1, activation, fc2: [B, N, C] -> [B, N, C]; gated, the activation of `gate` is multiplied with fc1."""

    def __init__(self, width: int, config: BlockConfig) -> None:
        super().__init__()
        self.config = config
        self.fc1 = nn.Linear(width, config.hidden)
        self.gate = nn.Linear(width, config.hidden) if config.gated else None
        self.act = ACTIVATIONS[config.act]()
        self.fc2 = nn.Linear(config.hidden, width)
        self.fc1_site, self.gate_site, self.act_site, self.fc2_site = Site(), Site(), Site(), Site()
        # A group of units is a value of its own in the exported graph, with its own scale.
        self.gelu_sites = nn.ModuleList(Site() for _ in config.spans())

    def inputs(self) -> tuple[nn.Linear, ...]:
        """The Linears that read the stream."""
        return (self.fc1,) if self.gate is None else (self.fc1, self.gate)

    def set_config(self, config: BlockConfig) -> None:
        """Takes over a configuration of the same widths."""
        if config.groups != self.config.groups:
            self.gelu_sites = nn.ModuleList(Site() for _ in config.spans())
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1_site(self.fc1(x))
        if self.gate is None:
            hidden = self.act(hidden)
        else:
            hidden = hidden * self.act_site(self.act(self.gate_site(self.gate(x))))
        if len(self.gelu_sites) == 1:
            hidden = self.gelu_sites[0](hidden)
        elif not all(_untouched(site) for site in self.gelu_sites):
            parts = hidden.split(self.config.groups, dim=-1)
            hidden = torch.cat([site(p) for site, p in zip(self.gelu_sites, parts, strict=True)], dim=-1)
        return self.fc2_site(self.fc2(hidden))


class Marker(nn.Module):
    """Marks attention's sink tokens in the residual stream: adds `row` [C] to those that `gate` finds. [B, N, C], what
    the MLP reads, -> [B, N, C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 1)
        self.row = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x).clamp(0, 1) * self.row


class Register(nn.Module):
    """Makes marked tokens constant for attention. [B, N, C], a LayerNorm's output, -> [B, N, C].

    `gate` is 0 for a marked token, which becomes `row` [C], so that its key and value are those of a constant register
    (arXiv 2506.08010, 2510.04547). The others come out as LayerNorm made them, whose bias holds -row for that.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 1)
        self.row = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x).clamp(0, 1) + self.row


class Block(nn.Module):
    """Pre-norm encoder block. `attention` or `mlp` is None where pruning removed it.

    queries: how many of the first tokens are needed after it; all where None. k and v are computed on all tokens, the
    rest on these alone: nothing else reaches the head. prefix: tokens that are never merged. A stream is [B, N, C], or
    [B, N, C + 1] once tokens were merged (see `vitedge.tokens`). grid: of the block's tokens; before: width of the
    stream that comes in, where a stage begins with this block.
    """

    def __init__(
        self,
        width: int,
        eps: float,
        config: BlockConfig,
        queries: int | None = None,
        prefix: int = 1,
        rope: Tensor | None = None,
        grid: tuple[int, int] = (0, 0),
        before: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.queries, self.grid = queries, grid
        self.downsample = Downsample(before, config.stage, grid, eps, Site) if config.stage else None
        self.attention = Attention(width, config, eps, rope, grid) if config.heads else None
        self.mlp = MLP(width, config) if config.hidden else None
        self.norm1 = nn.LayerNorm(width, eps=eps) if config.heads else None
        self.norm2 = nn.LayerNorm(width, eps=eps) if config.hidden else None
        self.norm1_register = Register(width) if config.heads and config.register else None
        self.norm2_marker = Marker(width) if config.hidden and config.marker else None
        self.norm1_site, self.norm2_site = Site(), Site()
        self.post_norm1_site, self.post_norm2_site = Site(), Site()
        self.residual1_site, self.residual2_site = Site(), Site()
        self.merge = TokenMerge(config.merge, width, prefix, Site()) if config.merge else None

    def set_config(self, config: BlockConfig) -> None:
        """Takes over a configuration of the same widths, in both halves."""
        self.config = config
        if config.register and self.norm1 is not None and self.norm1_register is None:
            self.norm1_register = Register(*self.norm1.normalized_shape)
        if config.marker and self.norm2 is not None and self.norm2_marker is None:
            self.norm2_marker = Marker(*self.norm2.normalized_shape)
        if self.attention is not None:
            self.attention.config = config
        if self.mlp is not None:
            self.mlp.set_config(config)

    def attend(self, x: Tensor, groups: Tensor | None = None) -> Tensor:
        """The first half: x + attention(norm1(x)), for the tokens that are needed after it, merged.

        groups: of each token [B, N], in the place of those that the merge would choose.
        """
        stream = self.attend_unmerged(x)
        return stream if self.merge is None else self.merge(stream, groups)

    def attend_unmerged(self, x: Tensor) -> Tensor:
        """The first half before the merge."""
        x, sizes = split_sizes(self.enter(x), self.width)
        residual = x if self.queries is None else x[:, : self.queries]
        if self.attention is not None and self.norm1 is not None:
            post = self.config.post_norm
            normed = x if post else self.norm1(x)
            normed = normed if self.norm1_register is None else self.norm1_register(normed)
            attended = self.attention(self.norm1_site(self.as_attended(normed)), self.queries, sizes)
            if self.config.window is not None:
                attended = from_windows(attended, self.grid, self.config.window)
            attended = self.post_norm1_site(self.norm1(attended)) if post else attended
            residual = self.residual1_site(residual + attended)
        return residual if self.queries is not None else join_sizes(residual, sizes)

    def enter(self, x: Tensor) -> Tensor:
        """The stream that the block's halves add to: patches merged where a stage begins, else the one that comes."""
        return x if self.downsample is None else self.downsample(x)

    def as_attended(self, x: Tensor) -> Tensor:
        """Tokens [B, N, C] as attention takes them: in windows, where it has some."""
        return x if self.config.window is None else to_windows(x, self.grid, self.config.window)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half: x + mlp(norm2(x))."""
        if self.mlp is None or self.norm2 is None:
            return x
        x, sizes = split_sizes(x, self.width)
        post = self.config.post_norm
        normed = self.norm2_site(x if post else self.norm2(x))
        written = self.mlp(normed)
        written = self.post_norm2_site(self.norm2(written)) if post else written
        if self.norm2_marker is not None:
            written = written + self.norm2_marker(normed)
        return join_sizes(self.residual2_site(x + written), sizes)

    def forward(self, x: Tensor, groups: Tensor | None = None) -> Tensor:
        return self.feed_forward(self.attend(x, groups))


class Query(nn.Module):
    """The query of an attention pool, the same for every image: [B, N, C] -> [B, 1, heads * qk_dim]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand(len(x), -1, -1)


class AttentionPool(nn.Module):
    """One token that attends to all [B, N, C] -> [B, 1, C], and an MLP (the MAP head of arXiv 2106.04560)."""

    def __init__(self, width: int, eps: float, config: BlockConfig) -> None:
        super().__init__()
        self.config = config
        self.attention, self.mlp = Attention(width, config, eps), MLP(width, config)
        self.attention.q = Query(config.heads * config.qk_dim)  # type: ignore[assignment]
        self.norm2, self.norm2_site, self.residual2_site = nn.LayerNorm(width, eps=eps), Site(), Site()

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        x = self.attention(x, sizes=sizes)
        return self.residual2_site(x + self.mlp(self.norm2_site(self.norm2(x))))


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
        self.pre_norm = nn.LayerNorm(width, eps=eps) if config.norm_pre else None
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
        if self.config.post_norm:
            return ()
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
                readers.append(Reader(f"block{i}.downsample_norm", down.norm, (down.linear,), tokens=4))
                streams.append(Stream(writers[0].width, tuple(writers), tuple(readers), tuple(sites)))
                writers = [Writer(p, 0, embedding=True) for p in (down.linear.weight, down.linear.bias)]
                readers, sites = [], []
            if block.attention is not None and block.norm1 is not None:
                a = block.attention
                readers.append(Reader(f"block{i}.norm1", block.norm1, (a.q, a.k, a.v), block.norm1_register))
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
        yield from super().readers()
        if self.config.post_norm:
            yield Reader("norm", self.norm, self.head_list())
        if self.pooling is not None:
            yield Reader("pool.norm2", self.pooling.norm2, self.pooling.mlp.inputs())

    def rotatable(self) -> Architecture:
        if self.pre_norm is None or self.pre is not None or self.config.post_norm:
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
                down = block.downsample
                own = [(f"{name}.downsample_norm", down.norm_site), (f"{name}.downsample", down.site)]
                named |= OrderedDict(
                    [(f"{name}.downsample_joined", down.joined_site), *own[::-1]] if c.post_norm else own
                )
            if a is not None:
                if isinstance(block, Block):
                    named[f"{name}.{c.reads[0]}"] = block.norm1_site
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
                for part in ("fc1", "gate", "act") if c.gated else ("fc1",):
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
                named[f"{name}.downsample"] = block.downsample.linear
            if block.attention is not None:
                for part in ("q", "k", "v", "out") if isinstance(block, Block) else ("k", "v", "out"):
                    named[f"{name}.attention.{part}"] = getattr(block.attention, part)
            if block.mlp is not None:
                named |= {f"{name}.mlp.fc1": block.mlp.fc1}
                named |= {f"{name}.mlp.gate": block.mlp.gate} if block.mlp.gate is not None else {}
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
