"""The products of a model: by the names that they and what they read have in the exported graph. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vitedge.vit.config import ViTConfig
from vitedge.vit.macs import merge_macs, patch_macs

PIXELS = "pixels"


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
    """

    name: str
    layer: str
    source: str
    macs: int
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None
    bias: bool = True


def units(config: ViTConfig) -> Iterator[Unit]:
    """All products with weights, in the order of the data flow."""
    width = config.width
    yield Unit("patch_embed", "patch_embed", PIXELS, patch_macs(config))
    for i, block in enumerate(config.blocks):
        name, (n, m, mlp) = f"block{i}", config.block_tokens(i)
        qk, v = block.heads * block.qk_dim, block.heads * block.v_dim
        if block.heads:
            a = f"{name}.attention"
            for part, size in (("q", m * qk), ("k", n * qk), ("v", n * v)):
                yield Unit(f"{a}.{part}", f"{a}.{part}", f"{name}.norm1", size * width)
            yield Unit(f"{a}.out", f"{a}.out", f"{a}.context", m * v * width)
        if block.hidden:
            parts = block.spans()
            for suffix, start, end in parts:
                macs = mlp * (end - start) * width
                layer = f"{name}.mlp.fc1"
                yield Unit(f"{layer}{suffix}", layer, f"{name}.norm2", macs, rows=(start, end))
            for suffix, start, end in parts:
                macs = mlp * (end - start) * width
                layer = f"{name}.mlp.fc2"
                source = f"{name}.mlp.gelu{suffix}"
                yield Unit(f"{layer}{suffix}", layer, source, macs, columns=(start, end), bias=start == 0)
    yield Unit("head", "head", "norm", width * config.classes)


def products(config: ViTConfig) -> Iterator[tuple[str, tuple[str, str], int]]:
    """(name, the two values it reads, MACs) of the products without weights: attention's two, and those of merging."""
    for i, block in enumerate(config.blocks):
        n, m, _ = config.block_tokens(i)
        if block.heads:
            a = f"block{i}.attention"
            yield f"{a}.scores", (f"{a}.q", f"{a}.k"), m * n * block.heads * block.qk_dim
            yield f"{a}.context.heads", (f"{a}.probs", f"{a}.v"), m * n * block.heads * block.v_dim
        if block.merge:
            yield f"block{i}.merged", (f"block{i}.merge.directions", f"block{i}.residual1"), merge_macs(config, i)
