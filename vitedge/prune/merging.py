"""Merging of tokens as something that pruning can choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vitedge import metrics
from vitedge.prune.candidates import Candidates
from vitedge.prune.statistics import BlockMoments
from vitedge.prune.store import logits, matched, parts, through
from vitedge.tokens.constant import cluster, clusters, mean_distances
from vitedge.tokens.matching import match_to
from vitedge.tokens.modules import TokenMerge
from vitedge.vit.architecture import Architecture
from vitedge.vit.block import Merge
from vitedge.vit.config import ViTConfig
from vitedge.vit.layers import Site
from vitedge.vit.macs import model_macs

# Tokens whose harm is measured, in sixteenths of the patches; those between are interpolated.
LEVELS = (4, 6, 8, 10, 12, 13, 14, 15)
# The work of trying merges, in MACs, and the images that they are tried on, at least and at most. A merge in the middle
# leaves about a third of a forward pass to compute.
TRY_MACS, MIN_TRIED, MAX_TRIED = 6e12, 16, 96


def token_candidates(stats: BlockMoments, config: ViTConfig, *, constant: bool) -> dict[int, tuple[int, ...] | None]:
    """Tokens left -> the groups where all images are merged alike, None where each image's own are matched."""
    patches = config.tokens - config.prefix
    steps = {config.prefix + max(1, round(patches * k / 16)) for k in LEVELS}
    wanted = sorted((n for n in steps if n < config.tokens), reverse=True)
    if not constant or stats.distances is None:
        return dict.fromkeys(wanted)
    return dict(clusters(*stats.distances, wanted, config.prefix))


@torch.no_grad()
def merging_harms(model: Architecture, x: Tensor, candidates: Sequence[Candidates]) -> list[dict[int, float]]:
    """For each block: tokens left -> KL divergence of the logits (nats) where that alone is merged, tried on streams
    before block 0 [I, N, C].

    Tried, since what a merge does grows with what follows it: of a ViT-Ti/16 sums of second order expected 0.49 nats of
    two large early merges that did 1.46, and chose them.
    """
    config, found = model.config, []
    passes = sum(len(one.tokens) for one in candidates) / 3
    x = x[: min(MAX_TRIED, max(MIN_TRIED, round(TRY_MACS / (passes * model_macs(config)))))]
    expected = logits(model, 0, x)
    for index, (block, ways) in enumerate(zip(model.encoder(), candidates, strict=True)):
        middle, harms = through(block.attend_unmerged, x), {}
        for left, groups in ways.tokens.items():
            if groups is None:
                of_image = torch.cat([match_to(part, left, config.prefix) for (part,) in parts(middle)])
            else:
                of_image = torch.tensor(groups).expand(len(middle), -1)
            merging = TokenMerge(Merge(left), block.width, config.prefix, Site())
            merged = through(block.feed_forward, through(merging, middle, of_image))
            harms[left] = metrics.kl(expected, logits(model, index + 1, merged), config.activation)
        found.append(harms)
        x = through(block.feed_forward, middle)
    return found


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
