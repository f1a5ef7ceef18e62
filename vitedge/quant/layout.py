"""Which values and which matrices of a ViT are quantised, by the names they have in the exported graph.

Imports no torch.
"""

from __future__ import annotations

from vitedge.vit.config import ViTConfig
from vitedge.vit.products import NORMALIZED, PIXELS, products, stem_units, units

# An activation stays float where the products that read it are less than this share
# of all MACs: the layers of the last block that see [CLS] alone, and groups of a few far-out MLP units.
# Integers save nothing there, and cost most: on a ViT-Ti/16 every other activation is good for 33 dB of logit
# SQNR or more, these for 24 to 30. Their weights are integers all the same.
NEGLIGIBLE = 0.005


def values(config: ViTConfig, preset: str, *, stem: bool = False) -> list[str]:
    """The activations that a preset quantises, in the order of the data flow.

    "full" is everything but what `NEGLIGIBLE` stands for: the last block's single token and groups of few units.

    stem: whether a convolutional stem is quantised too. Its MACs don't count in what is negligible beside them.

    "linear" leaves depthwise convolutions in float: they are a few percent of the MACs, and read each value once.
    """
    before = stem_units(config)
    others = [unit for unit in units(config) if unit not in before]
    total = sum(unit.macs for unit in others) + sum(macs for _, _, macs in products(config))
    if preset == "linear":
        read: dict[str, int] = {}
        for unit in (*(before if stem else ()), *(unit for unit in others if unit.kind != "depthwise")):
            read[unit.source] = read.get(unit.source, 0) + unit.macs
        return [name for name, macs in read.items() if macs >= NEGLIGIBLE * total]
    found = [PIXELS] if config.stem is None else []
    if stem and before:
        # A layer's output is quantised behind its GroupNorm, sum and activation, and not between them.
        found = [NORMALIZED, *(placed.layer.value for placed in config.stem_layers()[:-1])]
    found += ["patches", *(["embed"] if config.prefix or config.positions else [])]
    found += ["pre_norm"] if config.norm_pre else []
    found += ["pre"] if config.pre_linear else []
    for i, block in enumerate(config.blocks):
        # Behind its keys and values, the last block is one token.
        name, last = f"block{i}", config.queries(i) is not None
        found += [f"{name}.downsample{end}" for end in block.stage_sites()]
        if block.heads:
            found.append(f"{name}.{block.reads[0]}")
            found += [f"{name}.attention.{part}" for part in block.reduction_sites()]
            seen = [p for p in block.attention_sites() if not last or p[0] in "kv"]
            found += [f"{name}.attention.{part}" for part in seen]
            found += [f"{name}.norm1"] if block.post_norm else []
            found += [] if last else [f"{name}.residual1"]
        found += [f"{name}.merged"] if block.merge else []
        if block.hidden and not last:
            cost = config.block_width(i) * config.block_tokens(i).mlp
            sizes = [(suffix, (end - start) * cost) for suffix, start, end in block.spans()]
            suffixes = [suffix for suffix, macs in sizes if macs >= NEGLIGIBLE * total or len(sizes) == 1]
            kinds = (f"{name}.mlp.{kind}" for kind in block.unit_sites())
            found += [f"{name}.{block.reads[1]}", *(f"{kind}{s}" for kind in kinds for s in suffixes)]
            found += [f"{name}.mlp.fc2", *([f"{name}.norm2"] if block.post_norm else []), f"{name}.residual2"]
    if config.pool_norm == "tokens" and config.queries(len(config.blocks) - 1) is None:
        found.append("norm")
        found += ["pool.attention.k", "pool.attention.v"] if config.pool_block else []
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
