"""Plans that merge the same share of the tokens in some blocks at equal distances, as published schedules do.

Harms of single merges don't add up: what an early one does grows on the way. These plans need no sum of them; they are
tried beside those of the allocation. Of a ViT-Ti/16, with tokens dealt out as on a chessboard, 40, 40, 30 and 25 less
in blocks 3, 5, 7 and 9 had a KL divergence of 0.033 at 0.68 of the MACs, and 60, 55 and 25 less in 4, 7 and 9 one of
0.038 at 0.70 (192 images).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from vitedge.prune.choose import STAGES, count, curve, cut_config
from vitedge.prune.effects import Effects
from vitedge.prune.options import PruneOptions
from vitedge.prune.plan import BlockPlan, everything
from vitedge.vit.config import ViTConfig

# The first block that merges, in shares of the depth; the others follow a sixth of it later each.
FIRST, APART = (1 / 4, 1 / 3), 1 / 6


def spread_plans(
    config: ViTConfig, effects: Sequence[Effects], options: PruneOptions
) -> Iterator[tuple[list[BlockPlan], float]]:
    """Plans of tokens alone that save the share, and the harm expected of each (KL, nats); none where none does."""
    depth, counted = len(config.blocks), count(config, options)
    goal = (1 - (options.prune or 0.0)) * counted(config)
    for first in FIRST:
        blocks = sorted({min(depth - 2, round(depth * (first + k * APART))) for k in range(STAGES)})
        if depth < 3 or not all(effects[i].tokens for i in blocks):
            continue
        for percent in range(1, 51):  # matching takes half at most
            share = 1 - percent / 100
            left = [config.prefix + max(1, round(config.patches * share ** (k + 1))) for k in range(len(blocks))]
            merged = config
            for index, tokens in zip(blocks, left, strict=True):
                merged = cut_config(merged, index, tokens, options)
            if counted(merged) <= goal and len({config.tokens, *left}) > len(left):
                yield _plans(config, effects, blocks, left)
                break


def _plans(
    config: ViTConfig, effects: Sequence[Effects], blocks: list[int], left: list[int]
) -> tuple[list[BlockPlan], float]:
    plans, harm, before = [everything(block) for block in config.blocks], 0.0, config.tokens
    for index, tokens in zip(blocks, left, strict=True):
        expected = curve(effects[index].tokens, config.tokens)
        harm += max(0.0, expected(tokens) - expected(before))
        plans[index], before = replace(plans[index], left=tokens), tokens
    return plans, harm
