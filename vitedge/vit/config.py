"""The shape of a Vision Transformer, layer by layer. Imports no torch: a board and the reports read it too."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from vitedge.errors import VitedgeError
from vitedge.vit.names import block_index


@dataclass(frozen=True)
class Merge:
    """How a block's tokens become fewer, after its attention and before its MLP (see `vitedge.tokens`).

    Attributes:
        left: tokens that are left, prefix tokens included.
        groups: the group of each token, 0 to left - 1, where all images are merged alike: `matched` is False, or a
            target cannot sort. Empty where no such choice was made.
        matched: whether each image's own tokens are matched.
    """

    left: int
    groups: tuple[int, ...] = ()
    matched: bool = True

    def __post_init__(self) -> None:
        if self.groups and sorted(set(self.groups)) != list(range(self.left)):
            raise ValueError(f"{len(self.groups)} tokens are not merged into {self.left} groups")
        if not (self.matched or self.groups):
            raise ValueError("a merge is matched or has groups")


@dataclass(frozen=True)
class BlockConfig:
    """The widths of one encoder block.

    Attributes:
        heads: number of attention heads; 0 where the block's attention was removed.
        qk_dim, v_dim: size of a head's query and key, and of its value.
        hidden: MLP units; 0 where the block's MLP was removed.
        scale: what q.k is multiplied by before the softmax (1.0 once it is folded into q's weights).
        groups: sizes of consecutive groups of MLP units whose second product is quantised with a scale of its
            own; they sum to `hidden`. Empty for a single group. The function does not depend on them.
        merge: how tokens are merged between attention and MLP; None where they aren't.
    """

    heads: int
    qk_dim: int
    v_dim: int
    hidden: int
    scale: float
    groups: tuple[int, ...] = ()
    merge: Merge | None = None

    def __post_init__(self) -> None:
        if self.groups and sum(self.groups) != self.hidden:
            raise ValueError(f"groups {self.groups} do not sum to hidden {self.hidden}")

    def spans(self) -> list[tuple[str, int, int]]:
        """(suffix of the name in the graph, first unit, one past the last) of each group of MLP units."""
        sizes = self.groups or (self.hidden,)
        ends = enumerate(accumulate(sizes))
        return [(f".{i}" if len(sizes) > 1 else "", end - sizes[i], end) for i, end in ends]


class BlockTokens(NamedTuple):
    """How many tokens of an image a block computes: `keys` it reads (norm1, k, v), `queries` attention puts out, `mlp`
    the MLP reads and the block puts out."""

    keys: int
    queries: int
    mlp: int


@dataclass(frozen=True)
class ViTConfig:
    """Everything about a ViT but its weights.

    Attributes:
        image_size, patch_size: in pixels, square.
        channels: of the input image.
        width: of the residual stream.
        classes: of the head.
        blocks: one `BlockConfig` an encoder block.
        norm_eps: epsilon of every LayerNorm.
        activation: what turns the logits into probabilities: "softmax" for one class an image, "sigmoid"
            for several.
    """

    image_size: int
    patch_size: int
    channels: int
    width: int
    classes: int
    blocks: tuple[BlockConfig, ...]
    norm_eps: float = 1e-6
    activation: Literal["softmax", "sigmoid"] = "softmax"

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise VitedgeError(
                f"An image of {self.image_size} pixels does not divide into patches of {self.patch_size}.",
                "",
                f"Choose a multiple of {self.patch_size} as the image size.",
            )
        if len({b.merge.matched for b in self.blocks if b.merge}) > 1:
            raise ValueError("tokens are either matched in all blocks or in none")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Length of the sequence, [CLS] included."""
        return self.grid**2 + 1

    def queries(self, index: int) -> int | None:
        """How many of the first tokens are needed after block `index`; None for all. The head reads [CLS] alone."""
        return 1 if index == len(self.blocks) - 1 else None

    def block_tokens(self, index: int) -> BlockTokens:
        """The tokens that block `index` computes: no others than are needed after it."""
        merges = [b.merge.left for b in self.blocks[:index] if b.merge]
        keys, own = merges[-1] if merges else self.tokens, self.blocks[index].merge
        needed = self.queries(index) or keys
        return BlockTokens(keys, needed, own.left if own else needed)

    @property
    def prefix(self) -> int:
        """Tokens before the patches, which are never merged."""
        return 1

    def merged_alike(self) -> ViTConfig:
        """A copy in which all images are merged by the same groups, for compilers that cannot sort.

        Raises VitedgeError where no such groups were chosen.
        """
        if any(b.merge and not b.merge.groups for b in self.blocks):
            raise VitedgeError(
                "This model matches the tokens of each image, and has no constant groups beside it.",
                "The target's compiler cannot sort.",
                "Compress again with --prune-target set to the target.",
            )
        blocks = (replace(b, merge=replace(b.merge, matched=False)) if b.merge else b for b in self.blocks)
        return replace(self, blocks=tuple(blocks))

    def block_of(self, name: str) -> BlockConfig:
        """The block that a layer, a site or a value of the graph belongs to by its name."""
        index = block_index(name)
        assert index is not None, name
        return self.blocks[index]

    def with_block(self, index: int, **changes: Any) -> ViTConfig:
        """A copy in which block `index` has other widths."""
        blocks = list(self.blocks)
        blocks[index] = replace(blocks[index], **changes)
        return replace(self, blocks=tuple(blocks))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it (`arch.json`)."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ViTConfig:
        """The inverse of `to_dict`."""
        blocks = tuple(
            BlockConfig(**{**b, "groups": tuple(b.get("groups", ())), "merge": _merge(b.get("merge"))})
            for b in data["blocks"]
        )
        return cls(**{**data, "blocks": blocks})


def _merge(data: dict[str, Any] | None) -> Merge | None:
    return Merge(**{**data, "groups": tuple(data["groups"])}) if data else None


def uniform(
    *,
    image_size: int,
    patch_size: int,
    width: int,
    depth: int,
    heads: int,
    hidden: int,
    classes: int,
    channels: int = 3,
    norm_eps: float = 1e-6,
    activation: Literal["softmax", "sigmoid"] = "softmax",
) -> ViTConfig:
    """A dense ViT, the same in every block, as the paper draws it (arXiv 2010.11929)."""
    if width % heads:
        raise VitedgeError(f"{heads} heads do not divide the width {width}.", "", "Give the right number with --heads.")
    dim = width // heads
    block = BlockConfig(heads=heads, qk_dim=dim, v_dim=dim, hidden=hidden, scale=1 / math.sqrt(dim))
    return ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        channels=channels,
        width=width,
        classes=classes,
        blocks=(block,) * depth,
        norm_eps=norm_eps,
        activation=activation,
    )
