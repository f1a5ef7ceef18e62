"""Where quantisation loses: each activation's error, with all that came before it in INT8 and by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitedge.condition.ranges import hooked, kind_of
from vitedge.data.preprocess import Preprocess
from vitedge.metrics import cosine_of, finite, sqnr_of
from vitedge.quant.fake import simulate
from vitedge.quant.scheme import Scheme
from vitedge.quant.sensitivity import first_images, sensitivities
from vitedge.vit.architecture import Architecture

ADVICE = {
    "residual": "Rotate the stream (condition.rotate); massive activations: --registers, else --massive-drop.",
    "norm": "Smooth it (condition.smooth), or leave it in float.",
    "gelu": "Split its units (condition.groups, condition.group_gain), or leave it in float.",
    "fc1": "Split its units (condition.groups, condition.group_gain).",
    "context": "Balance the heads (condition.balance), or leave it in float.",
    "scores": "Balance the heads (condition.balance), or leave attention in float.",
    "probs": "Leave attention in float (preset linear).",
    "weight": 'Round it against more calibration images (quantize.rounding = "gptq", --calib-size).',
}
OTHERWISE = "Try another observer, or leave it in float (--max-drop)."
# Logit SQNR from which a tensor alone is no cause of flipped predictions (about 1 % of images flip at 30 dB).
GOOD_DB = 38.0


@dataclass(frozen=True)
class LayerError:
    """One tensor's error.

    Attributes:
        kind: "activation" or "weight".
        sqnr_db, cosine: of the activation itself with everything before it quantised (accumulated); None for
            weights, and for values that no site of the model shows whole.
        single_db: SQNR of the logits with this tensor alone quantised; None where they are equal to the last bit.
        divergence: of the probabilities, likewise.
        advice: what to do about it; empty where it does no harm.
    """

    name: str
    kind: str
    sqnr_db: float | None
    cosine: float | None
    single_db: float | None
    divergence: float
    advice: str


@torch.no_grad()
def layer_errors(
    model: Architecture,
    scheme: Scheme,
    batches: Iterable[Tensor],
    preprocess: Preprocess,
    images: int = 16,
    progress: Callable[[str], None] = lambda name: None,
) -> list[LayerError]:
    """Every quantised tensor's error on the first `images` images of `batches`, the worst first."""
    x = first_images(batches, images)
    accumulated = _accumulated(model, simulate(model, scheme, preprocess), x)
    found: list[LayerError] = []
    nothing: tuple[float | None, float | None] = (None, None)
    for effect in sensitivities(model, scheme, x, preprocess, progress):
        sqnr, cosine = accumulated.get(effect.name, nothing) if effect.kind == "activation" else nothing
        kind = kind_of(effect.name) if effect.kind == "activation" else "weight"
        kind = "fc1" if ".mlp.fc1" in effect.name and kind != "weight" else kind
        advice = "" if effect.sqnr_db >= GOOD_DB else ADVICE.get(kind, OTHERWISE)
        single = finite(effect.sqnr_db)
        found.append(
            LayerError(effect.name, effect.kind, finite(sqnr), cosine, single, effect.divergence, advice)
        )
    return found


def _accumulated(model: Architecture, sim: Architecture, x: Tensor) -> dict[str, tuple[float, float]]:
    """Site -> (SQNR in dB, cosine) of the quantised model's activation against the float model's.

    Only sums are kept: signal, noise, and products.
    """
    floats: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}

    def remember(name: str, value: Tensor) -> None:
        floats[name] = value

    def compare(name: str, value: Tensor) -> None:
        a, b = floats.pop(name).double().flatten(), value.double().flatten()
        part = torch.stack([a @ a, b @ b, a @ b, (a - b) @ (a - b)])
        sums[name] = sums[name] + part if name in sums else part

    for batch in x.split(4):
        with hooked(model.sites(), remember):
            model(batch)
        with hooked(sim.sites(), compare):
            sim(batch)
    result = {}
    for name, (aa, bb, ab, noise) in sums.items():
        result[name] = sqnr_of(float(aa), float(noise)), cosine_of(float(aa), float(bb), float(ab))
    return result
