"""Centring and rotating the residual stream: folded into all that write to it and all that read it. Exact.

Needs folded LayerNorms (gamma 1, beta 0; but for registers, whose rows are rotated with the stream).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vitedge.condition.ranges import hooked
from vitedge.condition.surgery import assign
from vitedge.vit.architecture import Architecture, Stream


@torch.no_grad()
def centre_stream(model: Architecture) -> None:
    """Removes the mean over channels from everything that writes to a residual stream, in place.

    LayerNorm removes it anyway. It also goes from the readers' rows: a centred stream does not see it. A stream whose
    tokens are also read side by side (patch merging) stays as it is: there LayerNorm removes their common mean alone.
    """
    _change(
        (s for s in model.streams() if s.mean_unseen),
        lambda x: x - x.mean(0, keepdim=True),
        lambda w: w - w.mean(1, keepdim=True),
    )


@torch.no_grad()
def rotate_stream(model: Architecture, rotation: Tensor, stage: int = 0) -> None:
    """Writers w -> Q w, readers r -> r Q^T of a stage's stream, in place. `rotation` Q [C, C], float64, orthogonal,
    Q 1 = 1, so that tokens keep their mean; of tokens side by side each is rotated."""
    _change(model.streams()[stage : stage + 1], lambda x: rotation @ x, lambda w: w @ rotation.T)


def _change(streams: Iterable[Stream], written: Callable[[Tensor], Tensor], read: Callable[[Tensor], Tensor]) -> None:
    """Applies `written` [C, n] to all that is added to the streams, `read` [n, C] to all of their readers."""
    for stream in streams:

        def change(rows: Tensor, width: int = stream.width) -> Tensor:
            return read(rows.double().reshape(-1, width)).reshape(rows.shape)

        for writer in stream.writers:
            shape = writer.parameter.movedim(writer.axis, 0).shape
            assign(writer.parameter, written(writer.columns()).reshape(shape).movedim(0, writer.axis))
        for reader in stream.readers:
            for linear in reader.gated_linears:
                assign(linear.weight, change(linear.weight))
            for row in {reader.norm.bias, reader.offset}:
                assign(row, change(row))


@torch.no_grad()
def stream_moment(model: Architecture, batches: Iterable[Tensor], stage: int = 0) -> Tensor:
    """Second moment of a stage's residual stream [C, C], float64, each site's scaled to a trace of 1, then summed.

    Scaled, because the stream grows from block to block and the early blocks count as much.
    """
    stream, named = model.streams()[stage], model.sites()
    sites = {name: named[name] for name in stream.sites}
    sums: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        flat = x.flatten(0, -2)
        if not stream.mean_unseen:  # it stays in the stream, and no rotation moves it
            flat = flat - flat.mean(-1, keepdim=True)
        gram = (flat.T @ flat).double()
        sums[name] = sums[name] + gram if name in sums else gram

    with hooked(sites, see):
        for batch in batches:
            model(batch)
    total = torch.zeros(stream.width, stream.width, dtype=torch.float64)
    for gram in sums.values():
        total += gram / gram.trace().clamp_min(1e-30)
    return total
