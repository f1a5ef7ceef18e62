"""The residual streams of all calibration images, kept in half precision, and blocks run over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from vitedge.prune.views import augment
from vitedge.tokens.matching import merge, split_sizes
from vitedge.tokens.modules import TokenMerge
from vitedge.vit.architecture import Architecture

Batches = Callable[[], Iterator[Tensor]]
CHUNK = 32
_HALF_MAX = 65504.0


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AVX512_BF16 or AMX)."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # younger than the oldest torch that we take
    return any(getattr(torch.cpu, name, bool)() for name in asked)


def mixed() -> torch.autocast:
    """bfloat16 products where they are fast; weights, sums and residual streams stay wider."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16())


def pack(x: Tensor) -> Tensor:
    """Float16: 11 bits are far finer than any pruning error, and the largest activations of ViTs fit."""
    return x.clamp(-_HALF_MAX, _HALF_MAX).half()


@torch.no_grad()
def embed_all(model: Architecture, batches: Batches, views: int, seed: int) -> Tensor:
    """The streams before block 0, [views * I, N, C] in float16: the images, then random crops of them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [pack(model.embed(augment(x, generator) if view else x)) for view in range(views) for x in batches()]
    )


def parts(*stores: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The stores in step, `CHUNK` images at a time, as float32."""
    for start in range(0, len(stores[0]), CHUNK):
        yield tuple(s[start : start + CHUNK].float() for s in stores)


@torch.no_grad()
def matched(merge: TokenMerge, store: Tensor) -> Tensor:
    """The groups [I, N] that a merge chooses for the streams of a store."""
    return torch.cat([merge.groups(*split_sizes(x, merge.width)) for (x,) in parts(store)])


@torch.no_grad()
def pooled(store: Tensor, history: Tensor | None) -> Tensor:
    """Streams [I, N, C] of the dense model with the tokens of the pruned one, [I, left, C]: the mean of all those that
    each stands for. As they are where nothing was merged, and where only the first tokens are computed."""
    if history is None or store.shape[1] != history.shape[1]:
        return store
    left = int(history.max()) + 1
    chunks = zip(parts(store), history.split(CHUNK), strict=True)
    return torch.cat([pack(merge(x, None, groups, left)[0]) for (x,), groups in chunks])


@torch.no_grad()
def through(run: Callable[..., Tensor], store: Tensor, *others: Tensor) -> Tensor:
    """A store through a block, or through a half of one; `others` go with it as further arguments."""
    done = []
    others_by_chunk = [other.split(CHUNK) for other in others]
    for number, (x,) in enumerate(parts(store)):
        with mixed():
            out = run(x, *(chunks[number] for chunks in others_by_chunk))
        done.append(pack(out.float()))
    return torch.cat(done)


@torch.no_grad()
def logits(model: Architecture, first: int, x: Tensor) -> Tensor:
    """The model's logits [I, classes], from the streams before block `first` [I, N, C] on."""
    if not len(x):
        return x.new_zeros(0, model.config.classes)
    for index in range(first, len(model.blocks)):
        x = through(partial(model.run_block, index), x)
    return torch.cat([model.classify(part) for (part,) in parts(x)])
