"""Conditioning as a whole: which transform, in which order, and what each did."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from vitedge.condition.fold import fold_attention_scale, fold_norms
from vitedge.condition.groups import group_units
from vitedge.condition.heads import balance_heads, scale_values
from vitedge.condition.massive import scale_massive
from vitedge.condition.options import ConditionOptions, ConditionReport, Rotation, Step
from vitedge.condition.orthogonal import hadamard_rotation, random_rotation, spreading_rotation
from vitedge.condition.ranges import Batches, crest_by_kind, hooked, measure
from vitedge.condition.registers import add_registers
from vitedge.condition.rotate import centre_stream, rotate_stream, stream_moment
from vitedge.condition.smooth import product_noise, smooth_norms
from vitedge.condition.transform import Applied, Transform, in_order
from vitedge.condition.units import scale_units
from vitedge.errors import VitedgeError
from vitedge.metrics import agreement
from vitedge.tokens.modules import merge_history, replaying
from vitedge.vit.architecture import Architecture
from vitedge.vit.config import ViTConfig

# Images on which the logits and ranges before and after each transform are compared.
CHECK_IMAGES = 16
# Exact transforms may move the logits by this share of their range: float32 rounding, nothing else.
EXACT = 1e-4


def condition(
    model: Architecture, batches: Batches, options: ConditionOptions | None = None
) -> tuple[Architecture, ConditionReport]:
    """A conditioned copy of `model`, and what each transform did.

    Args:
        batches: makes an iterator over normalised calibration images, float32 [B, 3, H, W]; called several
            times.

    Raises VitedgeError where there are no images, or an activation is NaN or infinite.
    """
    check_windows(model.config)
    options = options or ConditionOptions()
    model = copy.deepcopy(model if options.rotate == "off" else model.rotatable()).eval()
    log = _Log(model, _first(batches, CHECK_IMAGES))
    # Agreement lost is counted on all images; ranges and moments of some tell as much.
    some = _limited(batches, options.images)
    for transform in in_order(TRANSFORMS):
        if transform.wanted(options):
            done = transform.apply(model, batches if transform.all_images else some, options)
            model = done.model or model
            log.add(model, transform, done)
    return model, ConditionReport(tuple(log.steps))


def _first(batches: Batches, images: int) -> list[Tensor]:
    """The first `images` of the calibration images, in batches."""
    found: list[Tensor] = []
    missing = images
    for batch in batches():
        found.append(batch[:missing])
        missing -= len(found[-1])
        if missing <= 0:
            break
    return found


def _limited(batches: Batches, images: int) -> Batches:
    """As `batches`, but for the images after the first `images`."""

    def make() -> Iterator[Tensor]:
        left = images
        for batch in batches():
            yield batch[:left]
            left -= len(batch)
            if left <= 0:
                return

    return make


def _fold(model: Architecture, _batches: Batches, _options: ConditionOptions) -> Applied:
    fold_norms(model)
    fold_attention_scale(model)
    return Applied("gamma, beta and the attention scale")


def _registers(model: Architecture, batches: Batches, options: ConditionOptions) -> Applied:
    found, report = add_registers(model, batches, options.images)
    return Applied(report.to_dict(), exact=bool(report.reason), model=found)


def _massive(model: Architecture, batches: Batches, options: ConditionOptions) -> Applied:
    chosen = scale_massive(model, batches, (options.massive or 0) / 100)
    return Applied(chosen, exact=chosen["factor"] == 1)


def _rotated(model: Architecture, batches: Batches, options: ConditionOptions) -> Applied:
    best, kind = _rotate(model, batches, options.rotate, options.seed)
    model.load_state_dict(best.state_dict())
    return Applied(kind)


def _smooth(model: Architecture, batches: Batches, _options: ConditionOptions) -> Applied:
    return Applied(smooth_norms(model, batches()))


def _balance(model: Architecture, batches: Batches, _options: ConditionOptions) -> Applied:
    balance_heads(model, batches())
    return Applied(scale_values(model, batches()) | scale_units(model, batches()))


def _groups(model: Architecture, batches: Batches, options: ConditionOptions) -> Applied:
    return Applied(group_units(model, batches(), options.groups, options.group_gain, options.group_size))


# In the order in which they are applied.
TRANSFORMS = (
    Transform("fold", _fold, lambda o: o.fold, "fold = false"),
    Transform("registers", _registers, lambda o: o.fold and bool(o.registers), "registers = false", all_images=True),
    Transform("massive", _massive, lambda o: bool(o.massive), "massive = 0", all_images=True),
    Transform("rotate", _rotated, lambda o: o.rotate != "off", 'rotate = "off"'),
    Transform("smooth", _smooth, lambda o: o.smooth, "smooth = false"),
    Transform("balance", _balance, lambda o: o.balance, "balance = false"),
    Transform("groups", _groups, lambda o: o.groups > 1, "groups = 1"),
)


def check_windows(config: ViTConfig) -> None:
    """Raises VitedgeError where the last windows are completed with zeros, which no LayerNorm's bias can be folded
    around."""
    for i, block in enumerate(config.blocks):
        grid, window = config.block_grid(i), block.window
        if window is not None and window.padded(grid) != grid and not config.post_norm:
            raise VitedgeError(
                "The model can't be conditioned for images of this size.",
                f"{grid[0]} x {grid[1]} tokens do not divide into windows of {window.size[0]} x {window.size[1]}, and "
                "the zeros that complete them have no part of what is folded.",
                "Choose a size that divides with --image-size, or leave conditioning out: --no-condition.",
            )


@torch.no_grad()
def _rotate(model: Architecture, batches: Batches, kind: Rotation, seed: int) -> tuple[Architecture, dict[str, object]]:
    """The model with its streams centred and rotated in the way asked for, or the best of all ("auto")."""
    if not model.streams():
        reason = "LayerNorms write to the stream, and a rotation can't be folded into what they write"
        return model, {"kind": "off", "noise": {}, "reason": reason}
    centred = copy.deepcopy(model)
    centre_stream(centred)
    widths = [stream.width for stream in centred.streams()]
    makers: dict[str, Callable[[int], Tensor | None]] = {
        "off": lambda stage: None,
        "random": lambda stage: random_rotation(widths[stage], seed),
        "hadamard": lambda stage: hadamard_rotation(widths[stage], seed),
        "learned": lambda stage: spreading_rotation(stream_moment(centred, batches(), stage), seed),
    }
    kinds = list(makers) if kind == "auto" else [kind]
    sample = _first(batches, CHECK_IMAGES)
    best: tuple[float, str, Architecture] | None = None
    noises = {}
    for name in kinds:
        candidate = copy.deepcopy(centred)
        for stage in range(len(widths)):
            rotation = makers[name](stage)
            if rotation is not None:
                rotate_stream(candidate, rotation, stage)
        noises[name] = stream_noise(candidate, sample)
        if best is None or noises[name] < best[0]:
            best = noises[name], name, candidate
    assert best is not None
    return best[2], {"kind": best[1], "noise": noises}


@torch.no_grad()
def stream_noise(model: Architecture, batches: Iterable[Tensor]) -> float:
    """How much INT8 rounding costs around the residual stream: the mean, over LayerNorms, of the noise of the
    products that read them, and over residual sums, of their rounding noise over their variance."""
    sums = [name for stream in model.streams() for name in stream.sites]
    stats = measure(model, batches, [*(reader.site for reader in model.readers()), *sums])
    shares = []
    for reader in model.readers():
        stat = stats[reader.site]
        shares.append(product_noise(stat.absmax, stat.energy, reader.rows()))
    shares += [(stats[name].crest / 127) ** 2 / 12 for name in sums]
    return sum(shares) / len(shares)


class _Log:
    """Compares the model with what it was, after each transform."""

    def __init__(self, model: Architecture, sample: list[Tensor]) -> None:
        self.sample = sample
        self.steps: list[Step] = []
        with merge_history(model) as self.groups:
            self.crest, self.start = self.look(model)
        self.before = self.start

    def look(self, model: Architecture) -> tuple[dict[str, float], Tensor]:
        """Largest absmax over std of each kind of activation, and the logits [N, classes]."""
        logits: list[Tensor] = []
        # Scores and probabilities change with the heads alone, and are the largest tensors by far.
        sites = [n for n in model.sites() if not n.endswith((".scores", ".probs"))]
        with hooked({"head": model.head}, lambda _, x: logits.append(x)):
            stats = measure(model, self.sample, sites)
        return crest_by_kind(stats), torch.cat(logits)

    def add(self, model: Architecture, transform: Transform, done: Applied) -> None:
        with replaying(model, self.groups):
            crest, logits = self.look(model)
        # Against the step before: what a massive activation's scaling changed is not the rotation's.
        # A new head of zeros, untrained, gives the same logits everywhere: then there is no range.
        span = (self.before.max() - self.before.min()).clamp(min=torch.finfo(logits.dtype).tiny)
        difference = float((logits - self.before).abs().max() / span)
        if done.exact and not difference <= EXACT:
            raise VitedgeError(
                f"The transform '{transform.name}' changed the model's logits by {difference:.1e} of their range.",
                f"It is exact, so float rounding alone should show (at most {EXACT:.0e}); the weights may be damaged, "
                "or too badly scaled for float32.",
                (f"Switch it off with condition.{transform.switch}, and please" if transform.switch else "Please")
                + " report it with the checkpoint.",
                exit_code=1,
            )
        same = agreement(self.start, logits, model.config.activation)
        kinds = {k: (self.crest[k], crest[k]) for k in crest if k in self.crest}
        self.steps.append(Step(transform.name, done.exact, done.chosen, difference, same, kinds))
        self.crest, self.before = crest, logits


def batched(pixels: Tensor, size: int = 16) -> Batches:
    """Batches over one tensor of normalised images [N, 3, H, W]."""

    def make() -> Iterator[Tensor]:
        return (pixels[i : i + size] for i in range(0, len(pixels), size))

    return make
