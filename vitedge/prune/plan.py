"""What pruning decided, block by block."""

from __future__ import annotations

from dataclasses import dataclass

from vitedge.vit.block import BlockConfig


@dataclass(frozen=True)
class BlockPlan:
    """What stays of one block: which heads and how large, which MLP units (empty: that half goes), and how many tokens
    `left` after its attention; None leaves them as they are."""

    heads: tuple[int, ...]
    qk_dim: int
    v_dim: int
    units: tuple[int, ...]
    left: int | None = None

    @property
    def attention_gone(self) -> bool:
        return not self.heads

    @property
    def mlp_gone(self) -> bool:
        return not self.units

    def untouched_attention(self, block: BlockConfig) -> bool:
        return (len(self.heads), self.qk_dim, self.v_dim) == (block.heads, block.qk_dim, block.v_dim)

    def cuts(self, block: BlockConfig) -> bool:
        """Whether the block's own layers become smaller; merging alone leaves them as they are."""
        return not self.untouched_attention(block) or len(self.units) < block.hidden


def everything(block: BlockConfig) -> BlockPlan:
    """The plan that cuts nothing."""
    return BlockPlan(tuple(range(block.heads)), block.qk_dim, block.v_dim, tuple(range(block.hidden)))
