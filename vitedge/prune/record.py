"""What flows inside a block, recorded at its Linears, so that the model's own forward stays the only one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from vitedge.vit.layers import Block


@contextmanager
def recording(block: Block) -> Iterator[dict[str, Tensor]]:
    """A dict that each forward of the block fills.

    `middle` [B, N, C] is the stream between the halves, before any merge. `q`, `k` [B, N, heads * qk_dim] as computed,
    `context` [B, N, heads * v_dim] as the output projection reads it, `attention` [B, N, C] as it writes it, `hidden`
    [B, N, hidden] as fc2 reads it, `mlp` [B, N, C] as it writes it.
    """
    seen: dict[str, Tensor] = {}
    handles = []

    def outputs(module, name: str) -> None:
        handles.append(module.register_forward_hook(lambda _m, _i, out: seen.__setitem__(name, out)))

    def inputs(module, name: str) -> None:
        handles.append(module.register_forward_pre_hook(lambda _m, args: seen.__setitem__(name, args[0])))

    if block.attention is not None:
        outputs(block.attention.q, "q")
        outputs(block.attention.k, "k")
        inputs(block.attention.out, "context")
        outputs(block.attention.out, "attention")
        outputs(block.residual1_site, "middle")
    if block.mlp is not None:
        inputs(block.mlp.fc2, "hidden")
        outputs(block.mlp.fc2, "mlp")
        if block.attention is None and block.norm2 is not None:
            inputs(block.norm2, "middle")
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
