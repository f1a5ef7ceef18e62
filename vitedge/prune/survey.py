"""The dense model looked at: moments of every block, and the gradients that some importances rank by."""

from __future__ import annotations

import torch
from torch import Tensor

from vitedge.moments import Moments
from vitedge.prune.effects import sampled_gradients, weight_gradients
from vitedge.prune.importance import Layer
from vitedge.prune.record import recording
from vitedge.prune.statistics import AttentionMoments, BlockMoments, attended_weights, token_weights
from vitedge.prune.store import mixed, pack, parts, through
from vitedge.tokens.constant import mean_distances
from vitedge.vit.architecture import Architecture


@torch.no_grad()
def survey(model: Architecture, x: Tensor, distances: bool = False) -> list[BlockMoments]:
    """Every block's moments on a store of streams before block 0 [I, N, C]; with `distances`, those of tokens too."""
    found = []
    for block in model.encoder():
        stats = BlockMoments(
            Moments(block.mlp.fc2.in_features) if block.mlp is not None else None,
            AttentionMoments(block.attention.config) if block.attention is not None else None,
        )
        middles: list[Tensor] = []
        with recording(block) as seen, mixed():
            for (part,) in parts(x):
                out = block(part).float()[..., : block.width]
                middles += [pack(seen["middle"])] if distances and "middle" in seen else []
                if stats.hidden is not None:
                    stats.hidden.add(seen["hidden"], weights=token_weights(out))
                if stats.attention is not None:
                    stats.attention.add(seen, attended_weights(block, out))
        if middles:
            stats.distances = mean_distances(middles, block.width, model.config.prefix)
        found.append(stats)
        x = through(block, x)
    return found


def layers(
    model: Architecture,
    x: Tensor,
    moments: list[BlockMoments],
    gradients: bool,
    generator: torch.Generator,
) -> list[dict[str, Layer]]:
    """For each block "units" and "heads", as an importance takes them."""
    sums: list[dict[str, list[Tensor]]] = [{} for _ in moments]
    drawn = 0
    if gradients:
        drawings = sampled_gradients(model, (p for (p,) in parts(x)), 2, generator)
        for seen, found in ((seen, gradients) for seen, drawn in drawings for gradients in drawn):
            for block, s, g, m, total in zip(model.encoder(), seen, found, moments, sums, strict=True):
                means = m.means()
                for name, layer, source, key in (
                    ("units", block.mlp and block.mlp.fc2, "hidden", "mlp"),
                    ("heads", block.attention and block.attention.out, "context", "attention"),
                ):
                    if not layer:
                        continue
                    each = (weight_gradients(g[key], s[source], means[source]) * layer.weight).sum(1)
                    if name == "heads":
                        each = each.unflatten(1, (block.config.heads, -1)).sum(-1)
                    new = [each.abs().sum(0).double(), each.pow(2).sum(0).double()]
                    total[name] = [a + b for a, b in zip(total[name], new, strict=True)] if name in total else new
            drawn += len(next(iter(seen[0].values())))
    result = []
    for block, total in zip(model.encoder(), sums, strict=True):
        own = {}
        for name, pair, size in (
            ("units", block.mlp and (block.mlp.inputs(), block.mlp.fc2), 1),
            ("heads", block.attention and ((block.attention.v,), block.attention.out), block.config.v_dim),
        ):
            if pair:
                first, second = (t / drawn for t in total[name]) if name in total else (None, None)
                into = torch.cat([linear.weight.detach() for linear in pair[0]], 1)
                own[name] = Layer(into, pair[1].weight.detach(), size, first, second)
        result.append(own)
    return result
