"""What a Vision Transformer's blocks are made of.

q, k, v and the output projection are Linears of their own, and widths may differ by layer. Every activation that can be
observed or quantised passes through a `Site`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitedge.tokens.matching import join_sizes, split_sizes
from vitedge.tokens.modules import TokenMerge
from vitedge.vit.block import BlockConfig
from vitedge.vit.convolution import Convolution, from_grid, to_grid
from vitedge.vit.rope import turned
from vitedge.vit.stages import ConvDownsample, Downsample, ReducedTokens
from vitedge.vit.windows import WindowBias, from_windows, to_windows


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
    grid: of tokens, where attention is kept within windows of it (x is then [B * windows, area, C]), or keys and values
    come from fewer of them; behind_conv: epsilon of the LayerNorm there.
    """

    rope: Tensor | None

    def __init__(
        self,
        width: int,
        config: BlockConfig,
        eps: float = 1e-6,
        rope: Tensor | None = None,
        grid: tuple[int, int] = (0, 0),
        behind_conv: float = 1e-5,
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
        self.reduction: ReducedTokens | None = None
        if config.reduction is not None:
            self.reduction = ReducedTokens(width, config.reduction, grid, behind_conv, Site)
        self.q_site, self.k_site, self.v_site = Site(), Site(), Site()
        self.q_norm_site, self.k_norm_site, self.q_rope_site, self.k_rope_site = Site(), Site(), Site(), Site()
        self.scores_site, self.probs_site, self.context_site, self.out_site = Site(), Site(), Site(), Site()
        self.scores_product, self.softmax, self.context_product = MatMul(), nn.Softmax(-1), MatMul()

    def like(self, config: BlockConfig) -> Attention:
        """Another one of these widths, its weights not set but for the LayerNorms of q and k, and the reduction."""
        new = Attention(self.out.out_features, config, self.eps, self.rope, self.grid)
        new.reduction = self.reduction
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
        x = x if self.reduction is None else self.reduction(x)
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
    """fc1, activation, fc2: [B, N, C] -> [B, N, C]; gated, the activation of `gate` is multiplied with fc1; depthwise,
    each unit is filtered on the grid of tokens before the activation."""

    def __init__(self, width: int, config: BlockConfig, grid: tuple[int, int] = (0, 0)) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        self.fc1 = nn.Linear(width, config.hidden)
        self.gate = nn.Linear(width, config.hidden) if config.gated else None
        self.depthwise: Convolution | None = None
        if config.depthwise:
            self.depthwise = Convolution(config.hidden, config.hidden, 3, 1, (1, 1, 1, 1), config.hidden)
        self.act = ACTIVATIONS[config.act]()
        self.fc2 = nn.Linear(config.hidden, width)
        self.fc1_site, self.gate_site, self.act_site, self.fc2_site = Site(), Site(), Site(), Site()
        self.depthwise_site = Site()
        # A group of units is a value of its own in the exported graph, with its own scale.
        self.gelu_sites = nn.ModuleList(Site() for _ in config.spans())

    def inputs(self) -> tuple[nn.Linear, ...]:
        """The Linears that read the stream."""
        return (self.fc1,) if self.gate is None else (self.fc1, self.gate)

    def by_unit(self) -> tuple[nn.Linear | Convolution, ...]:
        """The layers with a row of weights for each unit."""
        return self.inputs() if self.depthwise is None else (*self.inputs(), self.depthwise)

    def set_config(self, config: BlockConfig) -> None:
        """Takes over a configuration of the same widths."""
        if config.groups != self.config.groups:
            self.gelu_sites = nn.ModuleList(Site() for _ in config.spans())
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1_site(self.fc1(x))
        if self.depthwise is not None:
            hidden = hidden.relu() if self.config.relu else hidden
            hidden = self.depthwise_site(from_grid(self.depthwise(to_grid(hidden, self.grid))))
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
    stream that comes in, where a stage begins with this block. behind_conv: epsilon of LayerNorms behind convolutions.
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
        behind_conv: float = 1e-5,
    ) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.queries, self.grid = queries, grid
        self.downsample: Downsample | ConvDownsample | None = None
        if config.stage is not None and config.stage.overlaps:
            self.downsample = ConvDownsample(before, config.stage, grid, eps, behind_conv, Site)
        elif config.stage is not None:
            self.downsample = Downsample(before, width, grid, eps, Site, post=config.post_norm)
        self.attention = Attention(width, config, eps, rope, grid, behind_conv) if config.heads else None
        self.mlp = MLP(width, config, grid) if config.hidden else None
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
