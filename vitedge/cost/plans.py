"""Plans drawn at random around a dense model: what a latency model is fitted to, and tested on. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vitedge.vit.block import BlockConfig, Merge
from vitedge.vit.config import ViTConfig

# The fewest of the units, heads and dims that stay, as a share; how much of all is drawn between these, 1 being all.
FEWEST, SHARES, APART = 0.3, (0.4, 1.25), 0.25
# Stages of merging at most, and the share of its tokens that one may take away.
STAGES, MOST_MERGED = 3, 0.45


def draw_plans(config: ViTConfig, count: int, seed: int, *, align: int = 16, head_align: int = 8) -> list[ViTConfig]:
    """`count` plans of the dense model `config`: the same by the same seed, a longer list begins with a shorter one."""
    return [draw_plan(config, np.random.default_rng([seed, n]), align, head_align) for n in range(count)]


def draw_plan(config: ViTConfig, rng: np.random.Generator, align: int, head_align: int) -> ViTConfig:
    """One plan: how much it cuts is drawn first, so that all sizes come about equally often."""
    share = rng.uniform(*SHARES)
    blocks = [_cut(block, rng, share, align, head_align) for block in config.blocks]
    plan = replace(config, blocks=tuple(blocks))
    return plan if config.unmergeable else _merged(plan, rng)


def _cut(block: BlockConfig, rng: np.random.Generator, share: float, align: int, head_align: int) -> BlockConfig:
    def width(full: int, step: int) -> int:
        if full <= step or step < 1:
            return full
        wanted = full * min(1.0, max(FEWEST, share + rng.uniform(-APART, APART)))
        return min(full, max(step, round(wanted / step) * step))

    heads = width(block.heads, 1)
    # q and k keep their dims where something stands between them and their product.
    qk = width(block.qk_dim, head_align) if block.free_logits else block.qk_dim
    v, hidden = width(block.v_dim, head_align), width(block.hidden, align)
    return replace(block, heads=heads, qk_dim=qk, v_dim=v, hidden=hidden, groups=())


def _merged(config: ViTConfig, rng: np.random.Generator) -> ViTConfig:
    places = [i for i in range(len(config.blocks) - 1) if config.queries(i) is None]
    stages = sorted(rng.choice(places, min(int(rng.integers(STAGES + 1)), len(places)), replace=False).tolist())
    tokens = config.tokens
    for index in stages:
        gone = int((tokens - config.prefix) * rng.uniform(0.1, MOST_MERGED))
        if gone:
            tokens -= gone
            config = config.with_block(index, merge=Merge(tokens))
    return config
