"""What a plan computes for one image, counted by kind: the work that a latency model puts a price on.

A plan is a `ViTConfig`: widths by block, tokens by stage. Imports no torch: a board and the report read it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from vitedge.vit.block import BlockConfig, BlockTokens
from vitedge.vit.config import ViTConfig
from vitedge.vit.geometry import STRIDE
from vitedge.vit.macs import average_macs, patch_macs

Kind = Literal[
    "patches", "linear", "weights", "attention", "softmax", "norm", "activation", "elementwise", "merge", "operator"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
# What one unit of each kind is.
UNITS: Mapping[Kind, str] = {
    "patches": "MAC",
    "linear": "MAC",
    "weights": "parameter",
    "attention": "MAC",
    "softmax": "score",
    "norm": "element",
    "activation": "element",
    "elementwise": "element",
    "merge": "element",
    "operator": "call",
}


@dataclass(frozen=True)
class Term:
    """Some work of one kind in one part of the model: "patches", "block3.attention", "block3.mlp", "head"."""

    part: str
    kind: Kind
    amount: float


def totals(terms: list[Term]) -> dict[Kind, float]:
    """The work of each kind, summed over the parts."""
    found: dict[Kind, float] = {}
    for term in terms:
        found[term.kind] = found.get(term.kind, 0.0) + term.amount
    return found


def model_terms(config: ViTConfig) -> list[Term]:
    """All work of one image as exported: a block counts only the tokens that are needed after it."""
    width, patches = config.width, config.patches
    found = [
        Term("patches", "patches", patch_macs(config)),
        *stem_terms(config),
        Term("patches", "operator", 1),
    ]
    # Positions are added to the patches, and the prefix is joined with them.
    joined = (patches if config.positions else 0) + (config.tokens if config.prefix else 0)
    if joined:
        found.append(Term("patches", "elementwise", joined * width))
    if config.norm_pre:
        found.append(Term("pre", "norm", config.tokens * width))
    if config.pre_linear:
        found += linear("pre", config.tokens, width, width)
    for index in range(len(config.blocks)):
        found += block_terms(config, index)
    tokens, width = config.block_tokens(len(config.blocks) - 1).mlp, config.last_width
    if config.pool_block is not None:
        at = BlockTokens(tokens, 1, 1)
        found += attention_terms("pool.attention", width, config.pool_block, at)
        found += mlp_terms("pool.mlp", width, config.pool_block, 1)
    rows = config.last_patches if "patches" in config.pool else 1
    found.append(Term("head", "norm", width * (1 if config.queries(len(config.blocks) - 1) else tokens)))
    for _ in config.pool:
        found += linear("head", rows, width, config.classes)
    return found


def stem_terms(config: ViTConfig) -> list[Term]:
    """The work of a stem but for the products of its convolutions: the normalised pixels, and what stands behind each
    layer."""
    placed = config.stem_layers()
    if not placed:
        return []
    found = [Term("patches", "elementwise", config.channels * config.image_size[0] * config.image_size[1])]
    for layer, _, _, _, _, (height, width) in placed[:-1]:
        size = layer.channels * height * width
        passes = bool(layer.groups) + bool(layer.plus) + (layer.act == "relu") + (layer.op != "conv")
        found += [Term("patches", "elementwise", passes * size)] * bool(passes)
        found += [Term("patches", "norm", size)] * bool(layer.groups)
        found += [Term("patches", "activation", size)] * (layer.act not in ("", "relu"))
        found += [Term("patches", "operator", 1)] * (layer.op == "conv")
    return found


def block_terms(config: ViTConfig, index: int) -> list[Term]:
    """The work of one block."""
    block, tokens, width = config.blocks[index], config.block_tokens(index), config.block_width(index)
    found: list[Term] = []
    if block.stage:
        part, before = f"block{index}.downsample", config.block_width(index - 1)
        merged = block.stage.kernel**2 * before
        normed = STRIDE**2 * before + width if block.stage.overlaps else width if block.post_norm else merged
        found.append(Term(part, "norm", tokens.mlp * normed))
        found += linear(part, tokens.mlp, merged, width)
    found += attention_terms(f"block{index}.attention", width, block, tokens) if block.heads else []
    if block.merge:
        found += merge_terms(
            f"block{index}.merge", config, tokens.queries, block.merge.left, matched=block.merge.matched
        )
    return found + (mlp_terms(f"block{index}.mlp", width, block, tokens.mlp) if block.hidden else [])


def linear(part: str, rows: int, inputs: int, outputs: int) -> list[Term]:
    """A Linear over so many rows."""
    return [
        Term(part, "linear", rows * inputs * outputs),
        Term(part, "weights", inputs * outputs),
        Term(part, "operator", 1),
    ]


def attention_terms(part: str, width: int, block: BlockConfig, tokens: BlockTokens) -> list[Term]:
    """LayerNorm, q, k, v, both products with the softmax between them, the output projection and the sum; what reduces
    keys and values."""
    n, m = tokens.keys, tokens.queries
    qk, v = block.heads * block.qk_dim, block.heads * block.v_dim
    found = [Term(part, "norm", max(m, n) * width), Term(part, "elementwise", m * width)]
    if block.reduction:
        found += [*linear(part, n, block.reduction.joined * width, width), Term(part, "norm", n * width)]
        # Tokens that are brought together are copied; others are averaged.
        found.append(Term(part, "elementwise", m * width))
    if block.reduction and block.reduction.pooled:
        found.append(Term(part, "activation", n * width))
    if tokens.averaged:
        found.append(Term(part, "linear", average_macs(width, tokens)))
    for rows, outputs in ((m, qk), (n, qk), (n, v)):
        found += linear(part, rows, width, outputs)
    found += [
        Term(part, "attention", m * tokens.seen(block) * (qk + v)),
        Term(part, "softmax", block.heads * m * tokens.seen(block)),
        Term(part, "operator", 1),
    ]
    if block.qk_norm:
        found.append(Term(part, "norm", (m + n) * qk))
    if block.rope:
        found.append(Term(part, "elementwise", 2 * (m + n) * qk))
    return found + linear(part, m, v, width)


def mlp_terms(part: str, width: int, block: BlockConfig, tokens: int) -> list[Term]:
    """LayerNorm, both Linears with the activation between them, and the sum."""
    hidden = block.hidden
    found = [Term(part, "norm", tokens * width), Term(part, "elementwise", tokens * width)]
    found += linear(part, tokens, width, hidden)
    if block.gated:
        found += [*linear(part, tokens, width, hidden), Term(part, "elementwise", tokens * hidden)]
    if block.depthwise:  # its products are few: it reads the units and writes them, and each way they are transposed
        found += [Term(part, "elementwise", 3 * tokens * hidden), Term(part, "operator", 1)]
    found.append(Term(part, "activation", tokens * hidden))
    return found + linear(part, tokens, hidden, width)


def merge_terms(part: str, config: ViTConfig, tokens: int, left: int, *, matched: bool) -> list[Term]:
    """Merging `tokens` into `left`: by similarity, or by one product with a constant."""
    width = config.width
    if not matched:
        return [Term(part, "linear", tokens * left * width), Term(part, "operator", 1)]
    second = (tokens - config.prefix) // 2
    first = tokens - config.prefix - second
    return [
        Term(part, "linear", (first + tokens - left) * second * width),
        Term(part, "norm", tokens * width),
        # Scores that are searched for the nearest, and the tokens that are dealt, gathered and joined.
        Term(part, "merge", first * second + 4 * tokens * width),
        Term(part, "operator", 8),
    ]
