"""Which values and which matrices of a ViT are quantised, by the names they have in the exported graph.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vitedge.vit.config import BlockConfig, ViTConfig

PIXELS = "pixels"
# An activation stays float where the products that read it are less than this share
# of all MACs: the layers of the last block that see [CLS] alone, and groups of a few far-out MLP units.
# Integers save nothing there, and cost most: on a ViT-Ti/16 every other activation is good for 33 dB of logit
# SQNR or more, these for 24 to 30. Their weights are integers all the same.
NEGLIGIBLE = 0.005


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


def bounds(block: BlockConfig) -> list[tuple[str, int, int]]:
    """(suffix of the name, first unit, one past the last) of each group of MLP units."""
    if not block.groups:
        return [("", 0, block.hidden)]
    found, start = [], 0
    for number, size in enumerate(block.groups):
        suffix = f".{number}" if len(block.groups) > 1 else ""
        found.append((suffix, start, start + size))
        start += size
    return found


def units(config: ViTConfig) -> Iterator[Unit]:
    """All products with weights, in the order of the data flow."""
    width, n = config.width, config.tokens
    yield Unit("patch_embed", "patch_embed", PIXELS, (n - 1) * config.channels * config.patch_size**2 * width)
    for i, block in enumerate(config.blocks):
        name = f"block{i}"
        m = 1 if i == len(config.blocks) - 1 else n
        qk, v = block.heads * block.qk_dim, block.heads * block.v_dim
        if block.heads:
            a = f"{name}.attention"
            for part, size in (("q", m * qk), ("k", n * qk), ("v", n * v)):
                yield Unit(f"{a}.{part}", f"{a}.{part}", f"{name}.norm1", size * width)
            yield Unit(f"{a}.out", f"{a}.out", f"{a}.context", m * v * width)
        if block.hidden:
            parts = bounds(block)
            for suffix, start, end in parts:
                macs = m * (end - start) * width
                layer = f"{name}.mlp.fc1"
                yield Unit(f"{layer}{suffix}", layer, f"{name}.norm2", macs, rows=(start, end))
            for suffix, start, end in parts:
                macs = m * (end - start) * width
                layer = f"{name}.mlp.fc2"
                source = f"{name}.mlp.gelu{suffix}"
                yield Unit(f"{layer}{suffix}", layer, source, macs, columns=(start, end), bias=start == 0)
    yield Unit("head", "head", "norm", width * config.classes)


def products(config: ViTConfig) -> Iterator[tuple[str, tuple[str, str], int]]:
    """(name, the two values it reads, MACs) of the products without weights: attention's two."""
    n = config.tokens
    for i, block in enumerate(config.blocks):
        m = 1 if i == len(config.blocks) - 1 else n
        if block.heads:
            a = f"block{i}.attention"
            yield f"{a}.scores", (f"{a}.q", f"{a}.k"), m * n * block.heads * block.qk_dim
            yield f"{a}.context.heads", (f"{a}.probs", f"{a}.v"), m * n * block.heads * block.v_dim


def values(config: ViTConfig, preset: str) -> list[str]:
    """The activations that a preset quantises, in the order of the data flow.

    "full" is everything but what `NEGLIGIBLE` stands for: the last block's single token and groups of few units.
    """
    if preset == "linear":
        read: dict[str, int] = {}
        for unit in units(config):
            read[unit.source] = read.get(unit.source, 0) + unit.macs
        total = sum(read.values()) + sum(macs for _, _, macs in products(config))
        return [name for name, macs in read.items() if macs >= NEGLIGIBLE * total]
    found = [PIXELS, "patches", "embed"]
    total = sum(unit.macs for unit in units(config)) + sum(macs for _, _, macs in products(config))
    for i, block in enumerate(config.blocks):
        name, last = f"block{i}", i == len(config.blocks) - 1
        if block.heads:
            found.append(f"{name}.norm1")
            # Behind its keys and values, the last block is one token.
            parts = ("k", "v") if last else ("q", "k", "v", "scores", "probs", "context", "out")
            found += [f"{name}.attention.{part}" for part in parts]
            found += [] if last else [f"{name}.residual1"]
        if block.hidden and not last:
            sizes = [(suffix, (end - start) * config.width * config.tokens) for suffix, start, end in bounds(block)]
            suffixes = [suffix for suffix, macs in sizes if macs >= NEGLIGIBLE * total or len(sizes) == 1]
            found += [f"{name}.norm2", *(f"{name}.mlp.fc1{s}" for s in suffixes)]
            found += [*(f"{name}.mlp.gelu{s}" for s in suffixes), f"{name}.mlp.fc2", f"{name}.residual2"]
    return found


def int8_share(config: ViTConfig, weights: set[str], activations: set[str]) -> float:
    """Share of the MACs whose two factors are integers."""
    done = total = 0
    for unit in units(config):
        total += unit.macs
        done += unit.macs if unit.name in weights and unit.source in activations else 0
    for _, sources, macs in products(config):
        total += macs
        done += macs if activations.issuperset(sources) else 0
    return done / total
