"""What a training run is asked to do. Imports no torch: the command line makes its flags of it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from vitedge.options import EXPERT, SEED_MAX, Cli, Options


class LoopOptions(Options):
    """Options of the loop itself, the same for every kind of training."""

    epochs: float = Field(10, gt=0, le=1e6, description="Passes over the training images; may be a fraction.")
    minutes: float | None = Field(
        None, gt=0, le=1e6, description="Bound of the wall time; the schedule ends with whichever ends first."
    )
    batch: int = Field(32, ge=1, le=65536, description="Images that a process computes at once.")
    accumulate: Annotated[int, EXPERT] = Field(
        1, ge=1, le=65536, description="Batches a step: it sees batch x accumulate x processes images."
    )
    lr: float = Field(3e-4, gt=0, description="Peak learning rate of AdamW.")
    layer_decay: Annotated[float, EXPERT] = Field(
        0.75, gt=0, le=1, description="Factor on the learning rate from each layer to the one before it."
    )
    weight_decay: Annotated[float, EXPERT] = Field(
        0.05, ge=0, le=100, description="Of matrices only; biases, norms, embeddings have none."
    )
    warmup: Annotated[float, EXPERT] = Field(
        0.05, ge=0, lt=1, description="Share of the run in which the learning rate rises."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="How the learning rate falls after it has risen."
    )
    final_lr: Annotated[float, EXPERT] = Field(
        0.01, ge=0, le=1, description="Share of the learning rate that the schedule ends at."
    )
    clip: Annotated[float, EXPERT] = Field(1.0, ge=0, le=1e6, description="Bound of the gradient's norm; 0 for none.")
    ema: Annotated[float, EXPERT] = Field(
        0.0, ge=0, lt=1, description="Decay of averaged weights, which then are the result; 0: none."
    )
    evaluations: Annotated[int, EXPERT] = Field(
        10, ge=1, le=100_000, description="Evaluations, evenly spread over the run."
    )
    best_by: Literal["accuracy", "loss"] = Field(
        "accuracy", description="What the best weights and --patience go by, on the validation images."
    )
    patience: int | None = Field(
        None, ge=1, le=100_000, description="Evaluations without a better score after which the run ends."
    )
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], EXPERT] = Field(
        "auto", description="Of matrix products; auto takes bf16 where the hardware has it, fp16 needs a GPU."
    )
    seed: int = Field(0, ge=0, le=SEED_MAX, description="Seed of the order, the augmentation and new weights.")
    workers: Annotated[int | None, EXPERT] = Field(
        None, ge=0, le=1024, description="Processes that augment. (default: 0 on a CPU, 4 with a GPU)"
    )
    save_seconds: Annotated[float, EXPERT] = Field(
        60.0, ge=0, le=1e6, description="Time between two saved states; 0 saves every step."
    )

    def identity(self) -> dict[str, object]:
        """The options that a resumed run must share with the one that it continues.

        More time, patience or workers change nothing of the steps that were done.
        """
        return self.model_dump(exclude={"minutes", "patience", "workers", "save_seconds"})


class AugmentOptions(Options):
    """Which random changes a training image goes through."""

    scale: Annotated[float, Cli("crop_scale")] = Field(
        0.35, gt=0, le=1, description="Least share of the area that a random crop keeps; 1: centre crop."
    )
    flip: bool = Field(True, description="Mirror half of the images.")
    jitter: Annotated[float, EXPERT] = Field(
        0.0, ge=0, le=1, description="Changes of brightness, contrast, saturation."
    )
    randaugment: Annotated[int, EXPERT] = Field(
        0, ge=0, le=30, description="Magnitude of RandAugment's two operations; 0: none."
    )
    mixup: Annotated[float, EXPERT] = Field(
        0.0, ge=0, le=100, description="Alpha of MixUp's Beta distribution; 0: none."
    )
    cutmix: Annotated[float, EXPERT] = Field(
        0.0, ge=0, le=100, description="Alpha of CutMix's Beta distribution; 0: none."
    )


def _numbers(value: Any) -> Any:
    """Numbers may be written with commas: "64,128"."""
    texts = [value] if isinstance(value, (str, int)) else value
    try:
        return tuple(int(part) for text in texts for part in str(text).split(",") if part.strip())
    except (TypeError, ValueError):
        return value


class FineTuneOptions(Options):
    """What a trained ViT learns anew on the user's classes."""

    train: str = Field("all", description="What learns: head, last-N (N blocks and the head) or all.")
    head_epochs: float = Field(
        2.0, ge=0, le=1e6, description="Passes in which the new head learns alone, before the rest joins; 0: none."
    )
    smoothing: Annotated[float, EXPERT] = Field(0.1, ge=0, lt=1, description="Label smoothing.")
    reweight: Annotated[bool, EXPERT] = Field(
        False, description="Weigh rare classes up, by the root of their frequency."
    )
    balance: Annotated[bool, EXPERT] = Field(False, description="Show each class equally often, rare ones repeatedly.")
    wrong_labels: Annotated[float, EXPERT] = Field(
        0.0, ge=0, lt=1, description="Share of wrong labels: so much of a batch, of the largest loss, doesn't teach."
    )
    teacher: str | None = Field(
        None, description="Another model of these classes that teaches too; as --model takes it."
    )
    teacher_weight: Annotated[float, EXPERT] = Field(0.5, ge=0, le=1, description="Its share of the loss.")
    image_sizes: Annotated[tuple[int, ...], BeforeValidator(_numbers)] = Field(
        (), description="Train at these resolutions in turn, in pixels: 64,128,224. The last is the model's."
    )
    shots: int | None = Field(
        None, ge=1, le=10_000, description="Few-shot: only the head learns, in closed form, on K images a class."
    )
    shots_head: Annotated[Literal["linear", "prototype"], EXPERT] = Field(
        "linear", description="Of --shots: logistic regression, or nearest class mean."
    )
    fold: str | None = Field(
        None, pattern=r"^[1-9][0-9]?/[1-9][0-9]?$", description="K/N: validate on the K-th of N parts of each class."
    )
    tracker: Literal["tensorboard", "wandb", "mlflow", "none"] = Field(
        "tensorboard", description="Who shows the figures, through accelerate."
    )
    val_share: float = Field(
        0.1, gt=0, lt=1, description="Share held out for validation, where the data has no val folder."
    )


class TeachingOptions(Options):
    """How a float model teaches another form of itself, on images without labels.

    From some hundred images, the blocks' outputs alone teach best, on images mixed as in "function matching"
    (arXiv 2106.05237). Pruned by 0.3, a ViT-Ti/16 that learnt the logits too fitted the images shown and came out
    further from the teacher on others than it went in (KL 0.39 -> 0.44), and nearer without (0.39 -> 0.35).
    """

    epochs: float = Field(30, gt=0, le=1e6, description="Passes over the calibration images.")
    minutes: float | None = Field(
        None, gt=0, le=1e6, description="Bound of the wall time; the schedule ends with whichever ends first."
    )
    batch: Annotated[int, Cli("train_batch", expert=True)] = Field(
        16, ge=1, le=65536, description="Images that a process computes at once."
    )
    accumulate: Annotated[int, EXPERT] = Field(1, ge=1, le=65536, description="Batches a step.")
    lr: Annotated[float, EXPERT] = Field(5e-5, gt=0, description="Peak learning rate of AdamW.")
    temperature: Annotated[float, EXPERT] = Field(
        1.0, gt=0, le=1e6, description="Of the class shares that the student learns from."
    )
    logit_weight: Annotated[float, EXPERT] = Field(
        0.0, ge=0, le=1e6, description="Weight of the logits' KL divergence; 0: none."
    )
    feature_weight: Annotated[float, EXPERT] = Field(
        1.0, ge=0, le=1e6, description="Weight of the blocks' outputs; 0: none."
    )
    crop_scale: Annotated[float, EXPERT] = Field(
        0.35, gt=0, le=1, description="Least share of the area that a random crop keeps."
    )
    mixup: Annotated[float, EXPERT] = Field(
        1.0, ge=0, le=100, description="Alpha of MixUp's Beta distribution; 0: none."
    )
    cutmix: Annotated[float, EXPERT] = Field(
        1.0, ge=0, le=100, description="Alpha of CutMix's Beta distribution; 0: none."
    )
    holdout: Annotated[int, EXPERT] = Field(
        128, ge=8, le=1_000_000, description="Images kept back to choose the best weights by, at most 1/4."
    )
    precision: Annotated[Literal["auto", "fp32", "bf16"], Cli("train_precision", expert=True)] = Field(
        "auto", description="Of matrix products; auto takes bf16 where the hardware has it."
    )
    seed: int = Field(0, ge=0, le=SEED_MAX, description="Seed of every random choice.")

    # Of the configuration: what errors name.
    section: ClassVar[str] = "distill"

    @model_validator(mode="after")
    def _something_to_learn(self) -> TeachingOptions:
        if not (self.logit_weight or self.feature_weight):
            raise ValueError("logit_weight and feature_weight are both 0: there is nothing to learn")
        return self

    def loop(self) -> LoopOptions:
        """What the loop is asked to do."""
        same = ("epochs", "minutes", "batch", "accumulate", "lr", "precision", "seed")
        chosen = {name: getattr(self, name) for name in same}
        return LoopOptions(**chosen, layer_decay=1.0, weight_decay=self.weight_decay, warmup=0.1)

    @property
    def weight_decay(self) -> float:
        """Of matrices."""
        return 0.01


class DistilOptions(TeachingOptions):
    """How the dense model teaches the pruned one."""

    epochs: float = Field(60, gt=0, le=1e6, description="Passes over the calibration images.")
    # On 600 images and a student at 0.06 nats, 2e-4 leads away before it leads back; 3e-5 to 5e-5 does not.
    lr: Annotated[float, EXPERT] = Field(5e-5, gt=0, description="Peak learning rate of AdamW.")
    holdout: Annotated[int, EXPERT] = Field(
        96, ge=8, le=1_000_000, description="Images kept back to choose the best weights by, at most 1/4."
    )


class QatOptions(TeachingOptions):
    """How the float model teaches the quantised one (quantisation-aware training)."""

    section: ClassVar[str] = "qat"

    lr: Annotated[float, EXPERT] = Field(5e-5, gt=0, description="Peak learning rate of AdamW, for the weights.")
    scale_lr: Annotated[float, EXPERT] = Field(
        10.0, ge=0, le=1e6, description="Learning rate of the step sizes, in multiples of that."
    )
    block_steps: Annotated[int, EXPERT] = Field(
        80,
        ge=0,
        le=1_000_000,
        description="Steps in which each block learns by itself, before the whole does (on a CPU); 0: none.",
    )
    block_lr: Annotated[float, EXPERT] = Field(3e-5, gt=0, description="Peak learning rate of these steps.")
    from_float: Annotated[float, EXPERT] = Field(
        1.0, ge=0, le=1, description="Weights start at their integers, moved by this share towards the float weights."
    )

    @property
    def weight_decay(self) -> float:
        return 0.0
