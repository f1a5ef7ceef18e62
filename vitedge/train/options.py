"""What a training run is asked to do. Imports no torch: the command line builds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from vitedge.errors import VitedgeError


@dataclass(frozen=True)
class LoopOptions:
    """Options of the loop itself, the same for every kind of training.

    Attributes:
        epochs: passes over the training images; may be a fraction.
        minutes: bound of the wall time, evaluations included; None for none. The schedule follows whichever of
            the two runs out first, so that a run that the clock ends has still had its whole cosine.
        batch: images a process computes at once.
        accumulate: batches a step is summed over. One step sees batch * accumulate * processes images.
        lr: peak learning rate of AdamW.
        layer_decay: factor on the learning rate from each layer to the one before it; 1 for none.
        weight_decay: of matrices only; biases, norms and embeddings have none.
        warmup: share of the run in which the learning rate rises linearly.
        final_lr: share of `lr` that the cosine ends at.
        clip: bound of the gradient's norm; 0 for none.
        ema: decay of the averaged weights, which are then what is evaluated and kept; 0 for none.
        evaluations: evenly spread over the run; the first one, before any step, comes on top.
        patience: evaluations without a better score after which the run ends; None for never.
        precision: of the matrix products; "auto" takes bf16 where the device has it in hardware.
        seed: of the order, the augmentation and the new weights.
        workers: processes that load and augment; None: none on a CPU, where they would take its cores.
        save_seconds: between two states on disk; 0 saves after every step.
    """

    epochs: float = 10
    minutes: float | None = None
    batch: int = 32
    accumulate: int = 1
    lr: float = 5e-4
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    warmup: float = 0.05
    final_lr: float = 0.01
    clip: float = 1.0
    ema: float = 0.0
    evaluations: int = 10
    patience: int | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0
    workers: int | None = None
    save_seconds: float = 60.0

    def __post_init__(self) -> None:
        positive = ("epochs", "batch", "accumulate", "lr", "layer_decay", "evaluations")
        for name in positive:
            if not getattr(self, name) > 0:
                raise _bad(name, getattr(self, name), "It must be greater than 0.")
        if self.minutes is not None and not self.minutes > 0:
            raise _bad("minutes", self.minutes, "It must be greater than 0.")
        for name in ("warmup", "final_lr", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise _bad(name, getattr(self, name), "It must be at least 0 and below 1.")

    def identity(self) -> dict[str, Any]:
        """The options that a resumed run must share with the one that it continues."""
        free = ("minutes", "patience", "workers", "save_seconds")
        return {k: v for k, v in asdict(self).items() if k not in free}


def _bad(name: str, value: Any, why: str) -> VitedgeError:
    return VitedgeError(f"{value} is no value for --{name.replace('_', '-')}.", why, "Choose another value.")
