"""What one encoder block is: its widths, what its attention reads, how its tokens are merged. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import ConfigDict, Field

from vitedge.vit.geometry import Reduction, Removable, Size, Stage, Window

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"]
Positive = Annotated[float, Field(gt=0, le=2**16)]
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Rope:
    """Axial rotary position embedding (arXiv 2104.09864, two-dimensional as in EVA-02, arXiv 2303.11331).

    One half of a head's pairs of dims is turned by the patch's row, the other by its column; pair i is dims i and
    i + half. The angle is coordinate * temperature^(-j / quarter), j = 0 to quarter - 1.

    Attributes:
        coordinates: "index", the row as it is counted; "centred", 2 pi times (row + 0.5) / rows * 2 - 1 (DINOv3).
        reference: grid that "index" coordinates are scaled to, where the model was trained on another one.
    """

    temperature: Positive
    coordinates: Literal["index", "centred"] = "index"
    reference: tuple[int, int] | None = None


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
        act: the MLP's activation: GELU by erf, by tanh (arXiv 1606.08415), x * sigmoid(1.702 x), or SwiGLU.
        qk_norm: whether q and k pass a LayerNorm over each head's dims.
        cosine: whether q and k are scaled to a norm of 1, and q times a number a head (Swin v2, arXiv 2111.09883).
        post_norm: whether LayerNorm stands after attention and MLP, before their sums, and both read the stream as it
            is (Swin v2).
        rope: whether q and k are turned by their patch's place (see `Rope`).
        marker: whether the block marks attention's sink tokens, see `layers.Marker`.
        register: whether attention reads marked tokens as a constant, see `layers.Register`.
        window: what attention is kept within; None where every token attends to all.
        stage: the stage that begins with this block; None where that of the block before goes on.
        reduction: how keys and values come from fewer tokens; None where they are made of all.
        depthwise: whether each MLP unit is filtered on the grid of tokens, by a 3 x 3 convolution with zeros around it,
            between fc1 and the activation (PVT v2, arXiv 2106.13797).
        relu: whether a ReLU stands before that convolution.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    heads: Removable
    qk_dim: Removable
    v_dim: Removable
    hidden: Removable
    scale: Positive
    groups: Annotated[tuple[Size, ...], Field(max_length=2**12)] = ()
    merge: Merge | None = None
    act: Activation = "gelu"
    qk_norm: bool = False
    rope: bool = False
    marker: bool = False
    register: bool = False
    cosine: bool = False
    post_norm: bool = False
    window: Window | None = None
    stage: Stage | None = None
    reduction: Reduction | None = None
    depthwise: bool = False
    relu: bool = False

    @property
    def gated(self) -> bool:
        """Whether a second Linear gates the MLP's units (SwiGLU, arXiv 2002.05202)."""
        return self.act == "swiglu"

    @property
    def free_logits(self) -> bool:
        """Whether nothing stands between the products q, k and their product, so that a matrix may go from one to the
        other."""
        return not (self.normed or self.rope)

    @property
    def normed(self) -> bool:
        """Whether q and k are normalised, in either way."""
        return self.qk_norm or self.cosine

    def __post_init__(self) -> None:
        if self.groups and sum(self.groups) != self.hidden:
            raise ValueError(f"groups {self.groups} do not sum to hidden {self.hidden}")
        if self.relu > self.depthwise or (self.depthwise and self.gated):
            raise ValueError("a ReLU stands before a depthwise convolution, which no gated MLP has")
        if self.reduction and (self.window or self.post_norm):
            raise ValueError(
                "keys and values are reduced where all tokens attend, and LayerNorm stands before attention"
            )

    @property
    def reads(self) -> tuple[str, str]:
        """What attention and MLP read: a LayerNorm's output, or the stream (in windows)."""
        return ("windows", "mlp.input") if self.post_norm else ("norm1", "norm2")

    @property
    def keys_read(self) -> str:
        """What k and v read: what q reads, or what the reduction leaves."""
        if self.reduction is None:
            return self.reads[0]
        return "attention.reduce_gelu" if self.reduction.pooled else "attention.reduce_norm"

    def stage_sites(self) -> tuple[str, ...]:
        """The activations of what begins a stage, in the order of the data flow, by what their names end with."""
        if self.stage is None:
            return ()
        if self.stage.overlaps:
            return ("_input", "", "_norm")
        return ("_joined", "", "_norm") if self.post_norm else ("_norm", "")

    def reduction_sites(self) -> tuple[str, ...]:
        """The activations of the reduction, in the order of the data flow, by their names behind the attention's."""
        if self.reduction is None:
            return ()
        return ("reduce_input", "reduce", "reduce_norm", *(["reduce_gelu"] if self.reduction.pooled else []))

    def unit_sites(self) -> tuple[str, ...]:
        """The activations of the MLP's units before the last product, in the order of the data flow."""
        return ("fc1", *(["gate", "act"] if self.gated else ["depthwise"] if self.depthwise else []), "gelu")

    def attention_sites(self) -> tuple[str, ...]:
        """The activations of attention, in the order of the data flow."""
        normed = ("q_norm", "k_norm") if self.normed else ()
        turned = ("q_rope", "k_rope") if self.rope else ()
        return ("q", "k", *normed, *turned, "v", "scores", "probs", "context", "out")

    def factor(self, part: str) -> str:
        """Which activation the product of q and k reads for `part`, "q" or "k"."""
        return f"{part}_rope" if self.rope else f"{part}_norm" if self.normed else part

    def spans(self) -> list[tuple[str, int, int]]:
        """(suffix of the name in the graph, first unit, one past the last) of each group of MLP units."""
        sizes = self.groups or (self.hidden,)
        ends = enumerate(accumulate(sizes))
        return [(f".{i}" if len(sizes) > 1 else "", end - sizes[i], end) for i, end in ends]


class BlockTokens(NamedTuple):
    """How many tokens of an image a block computes: `keys` it reads (k, v), `queries` attention puts out, `mlp` the MLP
    reads and the block puts out. Of windows all count, with the zeros that complete them. `averaged`: tokens that the
    keys are means of by a product with a constant, where the parts of the grid are not equal; else 0."""

    keys: int
    queries: int
    mlp: int
    averaged: int = 0

    def seen(self, block: BlockConfig) -> int:
        """Of the keys, those that one query attends to."""
        return self.keys if block.window is None else block.window.area
