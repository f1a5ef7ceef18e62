"""Zeros without structure: SparseGPT's closed form (Frantar and Alistarh, arXiv 2301.00774).

They make nothing faster on most targets: a dense product multiplies by zero as fast as by anything else. 2:4 does on
GPUs with sparse tensor cores (from NVIDIA's Ampere on), where the compiler is told to use them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitedge.errors import VitedgeError
from vitedge.moments import Moments, damping_for
from vitedge.prune.fit import Fit, fit_block
from vitedge.prune.linear import damped
from vitedge.prune.store import matched, mixed, parts, through
from vitedge.vit.architecture import Architecture
from vitedge.vit.layers import Block

# Columns among which a row's share of zeros is chosen at once.
WINDOW = 128


def sparsify(weight: Tensor, covariance: Tensor, pattern: str, damping: float = 1e-2) -> Tensor:
    """A weight [outputs, inputs] with zeros, the others moved to make up for them.

    pattern: a share such as "0.5", or "2:4": two zeros in every four inputs of each row.
    covariance: of the inputs, [inputs, inputs]. Column after column, from left to right: the error of what becomes
    zero is spread over the columns right of it by the inverse covariance.
    Raises: ValueError where 2:4 doesn't divide the inputs.
    """
    outputs, inputs = weight.shape
    if pattern == "2:4" and inputs % 4:
        raise ValueError(f"2:4 needs a multiple of 4 inputs, not {inputs}")
    w = weight.detach().double().clone()
    inverse = torch.linalg.inv(damped(covariance.double(), damping))
    upper = torch.linalg.cholesky(inverse, upper=True)
    scale = upper.diagonal()
    gone = torch.zeros(outputs, inputs, dtype=torch.bool)
    for i in range(inputs):
        if pattern == "2:4":
            if i % 4 == 0:
                score = (w[:, i : i + 4] / scale[i : i + 4]).pow(2)
                gone[:, i : i + 4].scatter_(1, score.argsort(dim=1, stable=True)[:, :2], True)
        elif i % WINDOW == 0:
            stop = min(i + WINDOW, inputs)
            score = (w[:, i:stop] / scale[i:stop]).pow(2)
            least = score.flatten().argsort(stable=True)[: round(float(pattern) * score.numel())]
            mask = torch.zeros(score.numel(), dtype=torch.bool)
            mask[least] = True
            gone[:, i:stop] = mask.view_as(score)
        error = torch.where(gone[:, i], w[:, i] / scale[i], torch.zeros((), dtype=w.dtype))
        w[:, i:] -= torch.outer(error, upper[i, i:])
        w[gone[:, i], i] = 0
    return w


def sparse_layers(block: Block, pattern: str) -> list[tuple[str, list[nn.Linear]]]:
    """The Linears of a block that get zeros, in the order of the data flow; those that read the same stand together.

    2:4 is for the speed of GPUs, and an MLP is where the products are large enough for it.
    """
    found: list[tuple[str, list[nn.Linear]]] = []
    if block.attention is not None and pattern != "2:4":
        a = block.attention
        found += [("attend", [a.q, a.k, a.v]), ("attend", [a.out])]
    if block.mlp is not None:
        found += [("feed_forward", list(block.mlp.inputs())), ("feed_forward", [block.mlp.fc2])]
    return found


@torch.no_grad()
def sparsify_model(
    model: Architecture,
    x: Tensor,
    pattern: str,
    fit: Fit | None = None,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
) -> float:
    """Zeros in the Linears of all blocks, in place, each chosen on what it is really fed; returns the share of zeros.

    x: the streams before block 0 [I, N, C]. The patch embedding and the head stay dense.
    fit: gradient steps with which each block then learns what the dense one writes; its zeros stay.
    """
    zeros = total = 0
    generator = torch.Generator().manual_seed(seed)
    dense = x
    for index, block in enumerate(model.encoder()):
        # Both merge the tokens that the model merges now.
        merged = () if block.merge is None else (matched(block.merge, through(block.attend_unmerged, x)),)
        target = through(block, dense, *merged)
        middle: Tensor | None = None
        for half, layers in sparse_layers(block, pattern):
            if half == "feed_forward" and middle is None:
                middle = through(block.attend, x)
            store, run = (x, block.attend) if half == "attend" else (middle, block.feed_forward)
            assert store is not None
            # Keys read all tokens, also where the queries are one.
            covariance = input_covariance(layers[min(1, len(layers) - 1)], run, store)
            for layer in layers:
                try:
                    layer.weight.copy_(sparsify(layer.weight, covariance, pattern))
                except ValueError as error:
                    raise VitedgeError(
                        f"Block {index} can't be made {pattern} sparse.", f"{error}.", "Prune with --align 32."
                    ) from error
                zeros += int((layer.weight == 0).sum())
                total += layer.weight.numel()
        if fit is not None:
            with torch.enable_grad():
                fit_block(block, x, target[..., : block.width], next(iter(merged), None), fit, generator, advance)
        x, dense = through(block, x, *merged), target
        advance(len(x))
    return zeros / max(total, 1)


def input_covariance(layer: nn.Linear, run: Callable[[Tensor], Tensor], store: Tensor) -> Tensor:
    """E[x x^T] of what a Linear reads, its mean included: the bias is not refitted."""
    moments = Moments(layer.in_features)
    handle = layer.register_forward_pre_hook(lambda _m, args: moments.add(args[0]))
    try:
        for (part,) in parts(store):
            with mixed():
                run(part)
    finally:
        handle.remove()
    second = moments.xx / moments.weight
    return damped(second, damping_for(0.0, moments))
