"""What pruning did. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from vitedge.tables import Table


@dataclass(frozen=True)
class LayerChange:
    """Tokens after its attention and widths of one block, (before, after) each, and its error.

    Attributes:
        error_cut, error: mean squared error of what the block writes, relative to each token's variance, against
            the dense model, everything before it pruned too: after the closed form, and after fitting. None where
            it was not measured.
    """

    block: int
    tokens: tuple[int, int]
    heads: tuple[int, int]
    qk_dim: tuple[int, int]
    v_dim: tuple[int, int]
    hidden: tuple[int, int]
    error_cut: float | None
    error: float | None


@dataclass(frozen=True)
class PruneReport:
    """JSON-able.

    Attributes:
        unit: what the share is counted in. asked, removed: the share.
        macs, params: (before, after), as the exported graph has them.
        predicted_kl: KL divergence of the logits that the cuts alone were expected to make, in nats.
        layers: one entry a block.
        sparsity: share of zeros in the Linears of the blocks, 0 where none was asked for.
        images, views, steps, batch: what the fit saw.
        seconds: stage -> time.
        held_out: images that nothing was measured, solved or fitted on. agreement, kl: with the dense model on these
            (kl in nats), before any distillation; None without any.
    """

    unit: str
    asked: float
    removed: float
    macs: tuple[int, int]
    params: tuple[int, int]
    predicted_kl: float
    layers: tuple[LayerChange, ...]
    sparsity: float
    images: int
    views: int
    steps: int
    batch: int
    seconds: dict[str, float]
    held_out: int = 0
    agreement: float | None = None
    kl: float | None = None

    def on_others(self) -> str:
        """How near the dense model is on images that were held out; empty where none were."""
        if self.agreement is None:
            return ""
        return f" On {self.held_out} others: agreement {self.agreement:.3f}, KL {self.kl:.3f}, with the dense model."

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """What was removed, and each block's widths."""
        columns = ["block", "tokens", "heads", "dims of q and k", "dims of v", "MLP units", "share of units left"]
        columns += ["error when cut", "error when fitted"]
        rows = [
            [
                layer.block,
                *(shown(pair) for pair in (layer.tokens, layer.heads, layer.qk_dim, layer.v_dim, layer.hidden)),
                layer.hidden[1] / layer.hidden[0] if layer.hidden[0] else None,
                layer.error_cut,
                layer.error,
            ]
            for layer in self.layers
        ]
        total = Table(
            "Pruning",
            ["", "before", "after", "share removed"],
            [
                [name, a, b, 1 - b / a]
                for name, (a, b) in (
                    ("MACs of the exported graph", self.macs),
                    ("parameters", self.params),
                )
            ],
            f"{self.images} calibration images in {self.views} views, no labels.{self.on_others()}",
        )
        note = "Errors are relative to each token's variance, against the dense model's block."
        return [
            total,
            Table("Tokens and widths before and after pruning", columns, rows, note, bars=["share of units left"]),
        ]


def shown(pair: tuple[int, int]) -> str:
    """A width, before and after."""
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]} -> {pair[1]}"
