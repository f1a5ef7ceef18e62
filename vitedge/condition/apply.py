"""Conditioning as a whole: which transform, in which order, and what each did."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

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
from vitedge.errors import VitedgeError
from vitedge.metrics import agreement
from vitedge.tokens.modules import merge_history, replaying
from vitedge.vit.architecture import Architecture

# Images on which the logits and ranges before and after each transform are compared.
CHECK_IMAGES = 16
# Exact transforms may move the logits by this share of their range: float32 rounding, nothing else.
EXACT = 1e-4
SWITCH = {
    "fold": "fold = false",
    "rotate": 'rotate = "off"',
    "smooth": "smooth = false",
    "balance": "balance = false",
    "groups": "groups = 1",
}


def condition(
    model: Architecture, batches: Batches, options: ConditionOptions | None = None
) -> tuple[Architecture, ConditionReport]:
    """A conditioned copy of `model`, and what each transform did.

    Args:
        batches: makes an iterator over normalised calibration images, float32 [B, 3, H, W]; called several
            times.

    Raises VitedgeError where there are no images, or an activation is NaN or infinite.
    """
    options = options or ConditionOptions()
    model = copy.deepcopy(model if options.rotate == "off" else model.rotatable()).eval()
    log = _Log(model, _first(batches, CHECK_IMAGES))
    if options.fold:
        fold_norms(model)
        fold_attention_scale(model)
        log.add(model, "fold", "gamma, beta and the attention scale")
    if options.fold and options.registers:
        model, report = add_registers(model, batches, options.images)
        log.add(model, "registers", report.to_dict(), exact=bool(report.reason))
    if options.massive:
        chosen: Any = scale_massive(model, batches, options.massive / 100)
        log.add(model, "massive", chosen, exact=chosen["factor"] == 1)
    # Agreement lost is counted on all images; ranges and moments of some tell as much.
    batches = _limited(batches, options.images)
    if options.rotate != "off":
        rotated, kind = _rotate(model, batches, options.rotate, options.seed)
        model.load_state_dict(rotated.state_dict())
        log.add(model, "rotate", kind)
    if options.smooth:
        log.add(model, "smooth", smooth_norms(model, batches()))
    if options.balance:
        balance_heads(model, batches())
        log.add(model, "balance", scale_values(model, batches()))
    if options.groups > 1:
        chosen = group_units(model, batches(), options.groups, options.group_gain, options.group_size)
        log.add(model, "groups", chosen)
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


@torch.no_grad()
def _rotate(model: Architecture, batches: Batches, kind: Rotation, seed: int) -> tuple[Architecture, dict[str, Any]]:
    """The model with its stream centred and rotated in the way asked for, or the best of all ("auto")."""
    centred = copy.deepcopy(model)
    centre_stream(centred)
    width = model.config.width
    makers: dict[str, Callable[[], Tensor | None]] = {
        "off": lambda: None,
        "random": lambda: random_rotation(width, seed),
        "hadamard": lambda: hadamard_rotation(width, seed),
        "learned": lambda: spreading_rotation(stream_moment(centred, batches()), seed),
    }
    kinds = list(makers) if kind == "auto" else [kind]
    sample = _first(batches, CHECK_IMAGES)
    best: tuple[float, str, Architecture] | None = None
    noises = {}
    for name in kinds:
        candidate = copy.deepcopy(centred)
        rotation = makers[name]()
        if rotation is not None:
            rotate_stream(candidate, rotation)
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
        weight, stat = torch.cat([linear.weight for linear in reader.linears]), stats[reader.site]
        shares.append(product_noise(stat.absmax, stat.energy, weight))
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

    def add(self, model: Architecture, name: str, chosen: Any, exact: bool = True) -> None:
        with replaying(model, self.groups):
            crest, logits = self.look(model)
        # Against the step before: what a massive activation's scaling changed is not the rotation's.
        # A new head of zeros, untrained, gives the same logits everywhere: then there is no range.
        span = (self.before.max() - self.before.min()).clamp(min=torch.finfo(logits.dtype).tiny)
        difference = float((logits - self.before).abs().max() / span)
        if exact and not difference <= EXACT:
            raise VitedgeError(
                f"The transform '{name}' changed the model's logits by {difference:.1e} of their range.",
                f"It is exact, so float rounding alone should show (at most {EXACT:.0e}); the weights may be damaged, "
                "or too badly scaled for float32.",
                f"Switch it off with condition.{SWITCH[name]}, and please report it with the checkpoint.",
                exit_code=1,
            )
        same = agreement(self.start, logits, model.config.activation)
        kinds = {k: (self.crest[k], crest[k]) for k in crest if k in self.crest}
        self.steps.append(Step(name, exact, chosen, difference, same, kinds))
        self.crest, self.before = crest, logits


def batched(pixels: Tensor, size: int = 16) -> Batches:
    """Batches over one tensor of normalised images [N, 3, H, W]."""

    def make() -> Iterator[Tensor]:
        return (pixels[i : i + size] for i in range(0, len(pixels), size))

    return make
