"""The shape of a Vision Transformer, layer by layer. Imports no torch: a board and the reports read it too."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from vitedge import documents
from vitedge.errors import VitedgeError
from vitedge.vit.block import BlockConfig, BlockTokens, Rope
from vitedge.vit.geometry import Size
from vitedge.vit.names import block_index
from vitedge.vit.stem import Placed, Stem


def sides(size: Any) -> Any:
    """(height, width) of a size in pixels: one number stands for both."""
    return (size, size) if isinstance(size, int) else size


# Bounds of what a document may ask for, before anything is allocated.
Pixels = Annotated[int, Field(strict=True, ge=1, le=2**13)]
Sides = Annotated[tuple[Pixels, Pixels], BeforeValidator(sides)]
# Pairs of tokens that share a window, of which a block keeps a mask: 256 MiB; Swin for 1024 pixels has a sixth.
MOST_SCORES = 2**26
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class ViTConfig:
    """Everything about a ViT but its weights.

    Attributes:
        image_size: (height, width) in pixels; one number for both. patch_size: in pixels, square.
        stem: the layers that make the patches where these are not one convolution of the pixels (a hybrid).
        channels: of the input image.
        width: of the residual stream; of its first stage where there are several.
        classes: of the head; dims of the embedding where there is no classifier.
        blocks: one `BlockConfig` an encoder block.
        norm_eps: epsilon of every LayerNorm.
        conv_norm_eps: of those behind a convolution (patch embedding, stages, reductions), where it is another.
        activation: what turns the logits into probabilities: "softmax" for one class an image, "sigmoid"
            for several; "none" where the output is an embedding.
        prefix_tokens: kinds of tokens before the patches: "cls", "dist" (arXiv 2012.12877), "reg" (arXiv 2309.16588).
        positions: whether there are learned positions, one a token; zero where the source has none for the prefix.
        norm_pre: whether a LayerNorm stands before the first block (CLIP, arXiv 2103.00020); pre_linear: whether a
            Linear follows it, into which its affine part is folded so that the stream can be rotated.
        rope: of the blocks that have it.
        pool: what the head reads, joined: kinds of prefix tokens, "mean" of the patches, "attention" (`pool_block`), or
            "patches", each by itself.
        pool_norm: whether the final LayerNorm normalises the "tokens" before pooling, or what was "pooled".
        pool_block: widths of the attention pool (SigLIP, arXiv 2303.15343).
        normalize: whether the output is scaled to a norm of 1.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    image_size: Sides
    patch_size: Pixels
    channels: Size
    width: Size
    classes: Annotated[int, Field(strict=True, ge=1, le=2**22)]
    blocks: Annotated[tuple[BlockConfig, ...], Field(min_length=1, max_length=2**10)]
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-6
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    prefix_tokens: tuple[str, ...] = ("cls",)
    positions: bool = True
    norm_pre: bool = False
    pre_linear: bool = False
    rope: Rope | None = None
    pool: tuple[str, ...] = ("cls",)
    pool_norm: Literal["tokens", "pooled"] = "tokens"
    pool_block: BlockConfig | None = None
    normalize: bool = False
    stem: Stem | None = None
    conv_norm_eps: Annotated[float, Field(gt=0, le=1)] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(sides(self.image_size)))
        height, width = self.image_size
        if self.patch_size < 1 or min(self.image_size) < 1 or height % self.patch_size or width % self.patch_size:
            size = f"{height}" if height == width else f"{height} x {width}"
            raise VitedgeError(
                f"An image of {size} pixels does not divide into patches of {self.patch_size}.",
                "",
                f"Choose a multiple of {self.patch_size} as the image size.",
            )
        if self.stem is not None and (self.stem_layers()[-1].size, self.stem.layers[-1].channels) != (
            self.grid,
            self.width,
        ):
            raise ValueError("the stem does not make the patches")
        if len({b.merge.matched for b in self.blocks if b.merge}) > 1:
            raise ValueError("tokens are either matched in all blocks or in none")
        if self.unmergeable and any(b.merge for b in self.blocks):
            raise VitedgeError(
                "This model's tokens can't be merged.", self.unmergeable, "Prune widths alone: --prune-by widths."
            )
        unknown = set(self.pool) - {*self.prefix_tokens, "mean", "attention", "patches"}
        if not self.pool or unknown or (len(self.pool) > 1 and {"attention", "patches"} & set(self.pool)):
            raise ValueError(f"a model with the tokens {self.prefix_tokens} can't be pooled by {self.pool}")
        if self.pool_norm == "pooled" and self.pool != ("mean",):
            raise ValueError("a LayerNorm after pooling belongs to the mean of the patches")
        if ("attention" in self.pool) != (self.pool_block is not None):
            raise ValueError("attention pooling has a pool_block")
        if self.rope is None and any(b.rope for b in self.blocks):
            raise ValueError("a block is rotated, but the model has no rope")
        if self.hierarchical or self.post_norm:
            self._check_stages()

    def _check_stages(self) -> None:
        if self.prefix_tokens or self.positions or self.rope or not set(self.pool) <= {"mean", "patches"}:
            raise ValueError("windows and stages are of patches alone, without positions")
        if any(
            b.post_norm != self.blocks[0].post_norm or (b.post_norm and b.heads and not b.window) for b in self.blocks
        ):
            raise ValueError("LayerNorm stands after the halves of all blocks, which have windows, or of none")
        if self.blocks[0].stage or any(b.register or b.marker for b in self.blocks):
            raise ValueError("a stage begins at the first block, or blocks have registers")
        if self.post_norm and any(b.stage and b.stage.overlaps for b in self.blocks):
            raise ValueError("LayerNorm stands before blocks whose stages begin with a convolution")
        halvings = self.block_stage(len(self.blocks) - 1)
        unit = self.patch_size * 2**halvings
        if any(side % unit for side in self.image_size):
            height, width = self.image_size
            raise VitedgeError(
                f"An image of {height} x {width} pixels does not divide into {halvings + 1} stages.",
                f"Each stage has half the rows and columns of tokens of the one before, from patches of "
                f"{self.patch_size} pixels.",
                f"Choose a multiple of {unit} as the image size.",
            )
        for i, block in enumerate(self.blocks):
            reduction = block.reduction
            if reduction and not reduction.pooled and not reduction.fits(self.block_grid(i)):
                raise ValueError(f"the tokens of block {i} do not divide into blocks of {reduction.size}")
            tokens = self.block_tokens(i)
            if tokens.averaged * tokens.keys > MOST_SCORES:
                raise ValueError(f"block {i} has means of more than {MOST_SCORES} weights")
            if block.window and tokens.keys * block.window.area > MOST_SCORES:
                raise ValueError(f"block {i} has more than {MOST_SCORES} pairs of tokens that share a window")

    @property
    def post_norm(self) -> bool:
        """Whether LayerNorm stands after each half of the blocks: what they write can't be turned or scaled then."""
        return self.blocks[0].post_norm

    @property
    def hierarchical(self) -> bool:
        """Whether there are several stages, windows, or convolutions over the grid of tokens."""
        return any(b.stage or b.window or b.reduction or b.depthwise for b in self.blocks)

    @property
    def overlaps(self) -> bool:
        """Whether stages begin with a convolution, behind which LayerNorm writes to the stream."""
        return any(b.stage and b.stage.overlaps for b in self.blocks)

    @property
    def behind_conv(self) -> float:
        """Epsilon of the LayerNorms behind a convolution."""
        return self.norm_eps if self.conv_norm_eps is None else self.conv_norm_eps

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    def stem_layers(self) -> list[Placed]:
        """The layers of the stem for this image size; none where the patches are one convolution of the pixels."""
        return self.stem.placed(self.channels, self.image_size) if self.stem is not None else []

    @property
    def pixels_weight(self) -> str:
        """The parameter [out, channels, kernel, kernel] that multiplies the image's channels."""
        return (
            "stem.layers.0.conv.weight" if self.stem is not None and len(self.stem.layers) > 1 else "patch_embed.weight"
        )

    def block_stage(self, index: int) -> int:
        """The stage that block `index` is in, from 0."""
        return sum(1 for b in self.blocks[: index + 1] if b.stage)

    def block_grid(self, index: int) -> tuple[int, int]:
        """(rows, columns) of tokens in the stage of block `index`."""
        halved = 2 ** self.block_stage(index)
        return self.grid[0] // halved, self.grid[1] // halved

    def block_width(self, index: int) -> int:
        """Width of the residual stream in the stage of block `index`."""
        return next((b.stage.width for b in reversed(self.blocks[: index + 1]) if b.stage), self.width)

    @property
    def last_width(self) -> int:
        """Width of the residual stream after the last block, which the heads read."""
        return self.block_width(len(self.blocks) - 1)

    @property
    def last_patches(self) -> int:
        """Patches after the last block, merged tokens as they were before."""
        return math.prod(self.block_grid(len(self.blocks) - 1))

    @property
    def patches(self) -> int:
        """Their number."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Length of the sequence, prefix tokens included."""
        return self.patches + self.prefix

    def queries(self, index: int) -> int | None:
        """How many of the first tokens are needed after block `index`, None for all: the last one computes no token
        that the pool does not read."""
        if index < len(self.blocks) - 1 or not set(self.pool) <= set(self.prefix_tokens):
            return None
        return max(self.prefix_tokens.index(part) for part in self.pool) + 1

    def block_tokens(self, index: int) -> BlockTokens:
        """The tokens that block `index` computes: no others than are needed after it."""
        if self.hierarchical:
            grid, window = self.block_grid(index), self.blocks[index].window
            inside = math.prod(window.padded(grid) if window else grid)
            if (reduction := self.blocks[index].reduction) is None:
                return BlockTokens(inside, inside, math.prod(grid))
            averaged = 0 if reduction.fits(grid) else inside
            return BlockTokens(math.prod(reduction.left(grid)), inside, inside, averaged)
        merges = [b.merge.left for b in self.blocks[:index] if b.merge]
        keys, own = merges[-1] if merges else self.tokens, self.blocks[index].merge
        needed = self.queries(index) or keys
        return BlockTokens(keys, needed, own.left if own else needed)

    @property
    def prefix(self) -> int:
        """Tokens before the patches, which are never merged."""
        return len(self.prefix_tokens)

    @property
    def unmergeable(self) -> str:
        """Why tokens can't be merged; empty where they can."""
        if self.hierarchical:
            return "Windows, stages and convolutions read the whole grid of tokens, and merged tokens leave gaps in it."
        if self.rope is not None:
            return "Attention turns each token by its place (RoPE), and a merged token has several."
        return "Its output is one vector a patch, and merged patches share one." if "patches" in self.pool else ""

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

    def heads(self) -> tuple[str, ...]:
        """Names of the heads, one a pooled part."""
        return ("head", *(f"head.{i}" for i in range(1, len(self.pool))))

    def block_of(self, name: str) -> BlockConfig:
        """The block, or the attention pool, that a layer, a site or a value of the graph belongs to by its name."""
        if name.startswith("pool.") and self.pool_block is not None:
            return self.pool_block
        index = block_index(name)
        assert index is not None, name
        return self.blocks[index]

    def with_block(self, index: int, **changes: Any) -> ViTConfig:
        """A copy in which block `index` has other widths."""
        blocks = list(self.blocks)
        blocks[index] = replace(blocks[index], **changes)
        return replace(self, blocks=tuple(blocks))

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it (`arch.json`)."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any, name: str = "arch.json") -> ViTConfig:
        """The inverse of `to_dict`; `name` is what errors call the document. Raises VitedgeError."""
        return documents.validate(data, cls, name, todo="Give the arch.json that was saved with the model.")


def uniform(
    *,
    image_size: int | tuple[int, int],
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
        image_size=sides(image_size),
        patch_size=patch_size,
        channels=channels,
        width=width,
        classes=classes,
        blocks=(block,) * depth,
        norm_eps=norm_eps,
        activation=activation,
    )
