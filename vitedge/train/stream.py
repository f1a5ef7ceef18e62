"""Residual streams of two forms of one model, compared although one is rotated or has its largest tokens scaled."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vitedge.condition.massive import OUTLIER
from vitedge.vit.architecture import Architecture

# Of what both models write to the stream at its beginning: beyond it, they are not one model.
SAME = 0.2


@torch.no_grad()
def stream_rotations(student: Architecture, teacher: Architecture) -> tuple[Tensor, ...] | None:
    """For each stage Q [C, C], orthogonal, with which the (centred) stream of `teacher` times Q is that of `student`.

    Conditioning rotates the streams. What both models write to one at its beginning (patch embedding and positions, or
    patch merging) tells how: orthogonal Procrustes (Schoenemann 1966). None where no rotation makes them alike.
    """
    found: list[Tensor] = []
    for ours, theirs in zip(_written(student), _written(teacher), strict=True):
        if found:  # the columns read tokens of the stage before, which are rotated too
            theirs = (theirs.unflatten(1, (-1, len(found[-1]))) @ found[-1]).flatten(1)
        u, _, vt = torch.linalg.svd(theirs @ ours.T)
        found.append(u @ vt)
        apart = (theirs.T @ found[-1] - ours.T).norm() / ours.norm()
        if float(apart) >= SAME:
            return None
    return tuple(rotation.float() for rotation in found)


def _written(model: Architecture) -> list[Tensor]:
    """Columns that the beginning of each stage adds to its stream [C, n], float64; centred over channels, as
    conditioning leaves them where no reader sees the mean.

    Where a LayerNorm stands before them (before the first block, in patch merging), they are those of the Linear behind
    it (an identity where the model has none yet), with what the LayerNorm multiplies by: conditioning moves that from
    one to the other.
    """
    model, found = model.rotatable(), []
    scales = {id(linear.weight): reader.norm.weight for reader in model.readers() for linear in reader.linears}
    for stream in model.streams():
        columns = []
        for writer in stream.writers:
            if writer.embedding and writer.parameter.ndim > 1:
                scale = scales.get(id(writer.parameter))
                columns.append(writer.columns() if scale is None else writer.columns() * scale.double())
        both = torch.cat([c / c.norm().clamp_min(1e-12) for c in columns], 1)
        found.append(both - both.mean(0, keepdim=True) if stream.mean_unseen else both)
    return found


def normalized(stream: Tensor) -> Tensor:
    """Tokens [..., C] as every LayerNorm reads them, before its affine part: how large a token is says nothing."""
    return F.layer_norm(stream.float(), stream.shape[-1:], eps=1e-6)


class Rotated:
    """The distance of two streams [B, N, C]: of what LayerNorm makes of them, in the student's rotation.

    registers: whether the student's sink tokens are marked (`vit.layers.Marker`) where the teacher's are massive: these
    tokens tell nothing about each other, and are left out.
    """

    def __init__(self, rotation: Tensor, registers: bool = False) -> None:
        self.rotation, self.registers = rotation, registers

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.rotation.device != teacher.device:
            self.rotation = self.rotation.to(teacher.device)
        apart = (normalized(student) - normalized(teacher) @ self.rotation).square().mean(-1)
        if not self.registers:
            return apart.mean()
        size = teacher.float().norm(dim=-1)
        usual = size <= OUTLIER * size.median(-1, keepdim=True).values
        return (apart * usual).sum() / usual.sum()
