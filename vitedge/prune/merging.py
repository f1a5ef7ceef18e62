"""Merging of tokens as something that pruning can choose."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from vitedge.prune.statistics import BlockMoments
from vitedge.prune.store import matched, parts, through
from vitedge.tokens.constant import cluster, clusters, mean_distances
from vitedge.vit.architecture import Architecture
from vitedge.vit.config import Merge, ViTConfig

# Numbers of tokens whose harm is measured; those between are interpolated.
LEVELS = 12


def token_candidates(stats: BlockMoments, config: ViTConfig, *, constant: bool) -> dict[int, tuple[int, ...] | None]:
    """Tokens left -> the groups where all images are merged alike, None where each image's own are matched."""
    patches = config.tokens - config.prefix
    steps = {config.prefix + max(1, round(patches * k / 16)) for k in range(16 - LEVELS, 16)}
    wanted = sorted((n for n in steps if n < config.tokens), reverse=True)
    if not constant or stats.distances is None:
        return dict.fromkeys(wanted)
    return dict(clusters(*stats.distances, wanted, config.prefix))


def with_groups(model: Architecture, x: Tensor) -> Architecture:
    """The model with constant groups beside its matching, for compilers that cannot sort: what suits the streams before
    block 0 [I, N, C] best on average, one merge after another."""
    config = model.config
    if not any(block.merge for block in model.encoder()):
        return model
    for index, block in enumerate(model.encoder()):
        between = through(block.attend_unmerged, x)
        if block.merge is not None and block.merge.config.matched:
            left = block.merge.config.left
            distances, sizes = mean_distances((part for (part,) in parts(between)), block.width, config.prefix)
            groups = cluster(distances, sizes, left, config.prefix)
            config = config.with_block(index, merge=Merge(left, groups))
            block.merge.config = replace(block.merge.config, groups=groups, matched=False)
        if block.merge is not None:
            between = through(block.merge, between, matched(block.merge, between))
        x = through(block.feed_forward, between)
    new = model.fresh(config)
    new.load_state_dict(model.state_dict())
    return new.eval()
