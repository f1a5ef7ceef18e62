"""The products of a model: by the names that they and what they read have in the exported graph. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vitedge.vit.block import BlockConfig, BlockTokens
from vitedge.vit.config import ViTConfig
from vitedge.vit.macs import (
    average_macs,
    depthwise_taps,
    head_macs,
    merge_macs,
    patch_macs,
    pre_macs,
    reduce_macs,
    stage_macs,
)

PIXELS = "pixels"
# What the first convolution of a stem reads: its zeros around the image are zeros of this.
NORMALIZED = "pixels.normalized"


@dataclass(frozen=True)
class Unit:
    """One matrix product with weights, as it stands in the graph.

    Attributes:
        name: of the product in the graph, and of its initialisers (`name.weight`, `name.bias`).
        layer: the model's Linear that it is a part of.
        source: the value that it reads.
        rows, columns: the part of the Linear's weight [out, in] that it holds; None for all.
        bias: whether it adds the (part of the) Linear's bias.
        macs: multiply-accumulates of one image.
        kind: "linear"; "stem" and "stage" for the convolutions that make the patches and the tokens of a further stage;
            "depthwise" for those that filter each unit by itself.
    """

    name: str
    layer: str
    source: str
    macs: int
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None
    bias: bool = True
    kind: Literal["linear", "stem", "stage", "depthwise"] = "linear"


def units(config: ViTConfig) -> Iterator[Unit]:
    """All products with weights, in the order of the data flow."""
    if config.stem is None:
        yield Unit("patch_embed", "patch_embed", PIXELS, patch_macs(config))
    for placed in config.stem_layers():
        if placed.layer.op == "conv":
            source = placed.source.value if placed.source else NORMALIZED
            yield Unit(placed.layer.unit, placed.layer.unit, source, placed.macs, kind="stem")
    if config.pre_linear:
        yield Unit("pre", "pre", "pre_norm", pre_macs(config))
    for i, block in enumerate(config.blocks):
        name, tokens, width = f"block{i}", config.block_tokens(i), config.block_width(i)
        if block.stage:
            kind: Literal["stage", "linear"] = "stage" if block.stage.overlaps else "linear"
            layer = f"{name}.downsample"
            yield Unit(layer, layer, f"{layer}{block.stage_sites()[0]}", stage_macs(config, i), kind=kind)
        if block.heads:
            sources = f"{name}.{block.reads[0]}", f"{name}.{block.keys_read}"
            yield from _attention_units(f"{name}.attention", block, width, sources, tokens)
        if block.hidden:
            yield from _mlp_units(f"{name}.mlp", block, width, f"{name}.{block.reads[1]}", tokens.mlp)
    if config.pool_block is not None:
        tokens, width = BlockTokens(config.block_tokens(len(config.blocks) - 1).mlp, 1, 1), config.last_width
        yield from list(_attention_units("pool.attention", config.pool_block, width, ("norm", "norm"), tokens))[1:]
        yield from _mlp_units("pool.mlp", config.pool_block, width, "pool.norm2", 1)
    for name, part in zip(config.heads(), config.pool, strict=True):
        yield Unit(name, name, _head_source(config, part), head_macs(config))


def stem_units(config: ViTConfig) -> list[Unit]:
    """Those of them that are convolutions of a stem; none where the patches are one convolution of the pixels."""
    return [unit for unit in units(config) if unit.kind == "stem"]


def _head_source(config: ViTConfig, part: str) -> str:
    if part == "attention":
        return "pool.residual2"
    return "pool.mean" if part == "mean" and config.pool_norm == "tokens" else "norm"


def _attention_units(
    a: str, block: BlockConfig, width: int, sources: tuple[str, str], tokens: BlockTokens
) -> Iterator[Unit]:
    """sources: what q reads, and what k and v read."""
    qk, v, n, m = block.heads * block.qk_dim, block.heads * block.v_dim, tokens.keys, tokens.queries
    if block.reduction:
        yield Unit(f"{a}.reduce", f"{a}.reduce", f"{a}.reduce_input", reduce_macs(width, block, tokens))
    for part, source, size in (("q", sources[0], m * qk), ("k", sources[1], n * qk), ("v", sources[1], n * v)):
        yield Unit(f"{a}.{part}", f"{a}.{part}", source, size * width)
    yield Unit(f"{a}.out", f"{a}.out", f"{a}.context", m * v * width)


def _mlp_units(name: str, block: BlockConfig, width: int, source: str, tokens: int) -> Iterator[Unit]:
    for part in ("fc1", "gate") if block.gated else ("fc1",):
        for suffix, start, end in block.spans():
            layer = f"{name}.{part}"
            yield Unit(f"{layer}{suffix}", layer, source, tokens * (end - start) * width, rows=(start, end))
    for suffix, start, end in block.spans() if block.depthwise else ():
        layer, macs = f"{name}.depthwise", tokens * (end - start) * depthwise_taps(block)
        yield Unit(f"{layer}{suffix}", layer, f"{name}.fc1{suffix}", macs, rows=(start, end), kind="depthwise")
    for suffix, start, end in block.spans():
        layer, macs = f"{name}.fc2", tokens * (end - start) * width
        yield Unit(f"{layer}{suffix}", layer, f"{name}.gelu{suffix}", macs, columns=(start, end), bias=start == 0)


def products(config: ViTConfig) -> Iterator[tuple[str, tuple[str, str], int]]:
    """(name, the two values it reads, MACs) of the products without weights: attention's two, those of merging, and
    means by a constant."""
    for i, block in enumerate(config.blocks):
        tokens = config.block_tokens(i)
        m, n = tokens.queries, tokens.seen(block)
        if block.heads:
            a, q, k = f"block{i}.attention", block.factor("q"), block.factor("k")
            if tokens.averaged:
                sources = f"{a}.means", f"block{i}.{block.reads[0]}"
                yield f"{a}.reduce_input", sources, average_macs(config.block_width(i), tokens)
            yield f"{a}.scores", (f"{a}.{q}", f"{a}.{k}"), m * n * block.heads * block.qk_dim
            yield f"{a}.context.heads", (f"{a}.probs", f"{a}.v"), m * n * block.heads * block.v_dim
        if block.merge:
            yield f"block{i}.merged", (f"block{i}.merge.directions", f"block{i}.residual1"), merge_macs(config, i)
    if config.pool_block is not None:
        block, a, n = config.pool_block, "pool.attention", config.block_tokens(len(config.blocks) - 1).mlp
        yield f"{a}.scores", (f"{a}.query", f"{a}.k"), n * block.heads * block.qk_dim
        yield f"{a}.context.heads", (f"{a}.probs", f"{a}.v"), n * block.heads * block.v_dim
