"""What a cut of widths does to the logits: second order, from the model's own outputs, without labels and untried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from vitedge.prune.candidates import Candidates
from vitedge.prune.record import recording
from vitedge.prune.store import mixed
from vitedge.vit.architecture import Architecture


@dataclass
class Effects:
    """Of one block: what would be left -> expected KL divergence of the logits, in nats.

    Those of tokens are no sums of second order but tried (`vitedge.prune.merging.merging_harms`).
    """

    units: dict[int, float] = field(default_factory=dict)
    heads: dict[int, float] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)
    logits: dict[int, float] = field(default_factory=dict)
    tokens: dict[int, float] = field(default_factory=dict)


def log_probability(logits: Tensor, activation: str, generator: torch.Generator) -> Tensor:
    """log p(y) summed over the batch, of an output y drawn from the model's own distribution."""
    p = logits.detach().float()
    if activation == "none":
        # Of embeddings the direction counts: the Fisher information of a normal distribution around it is 1.
        y = torch.randn(p.shape, generator=generator)
        return (F.normalize(logits.float().flatten(1), dim=-1) * y.flatten(1)).sum()
    if activation == "sigmoid":
        y = torch.bernoulli(p.sigmoid(), generator=generator)
        return -F.binary_cross_entropy_with_logits(logits.float(), y, reduction="sum")
    y = torch.multinomial(p.softmax(-1), 1, generator=generator)
    return logits.float().log_softmax(-1).gather(1, y).sum()


Gradients = list[dict[str, Tensor]]
PLACES = ("q", "attention", "mlp")


def sampled_gradients(
    model: Architecture, batches: Iterable[Tensor], samples: int, generator: torch.Generator
) -> Iterator[tuple[Gradients, list[Gradients]]]:
    """For batches of residual streams before block 0 [B, N, C]: what flows in each block, and its gradients.

    Yields a batch's tensors of `recording` for each block, and, `samples` times, the gradients of the log probability
    of a drawn output at "q", "attention" and "mlp". The expectation over draws of their outer product is the
    Fisher matrix, half of whose quadratic form is the KL divergence a small change makes.
    """
    for x in batches:
        images = len(x)

        def by_image(t: Tensor, images: int = images) -> Tensor:
            """[B, tokens, channels], also of what windows have taken apart."""
            return t.float().reshape(images, -1, t.shape[-1])

        with ExitStack() as stack, torch.enable_grad():
            seen = [stack.enter_context(recording(block)) for block in model.encoder()]
            flow = x.detach().float().requires_grad_(True)
            with mixed():
                for index in range(len(model.blocks)):
                    flow = model.run_block(index, flow)
            logits = model.classify(flow.float())
            places = [(i, name) for i, s in enumerate(seen) for name in PLACES if name in s]
            drawn = []
            for n in range(samples):
                log_p = log_probability(logits, model.config.activation, generator)
                found = torch.autograd.grad(log_p, [seen[i][name] for i, name in places], retain_graph=n + 1 < samples)
                gradients: Gradients = [{} for _ in seen]
                for (i, name), gradient in zip(places, found, strict=True):
                    gradients[i][name] = by_image(gradient)
                drawn.append(gradients)
            yield [{k: by_image(v.detach()) for k, v in s.items()} for s in seen], drawn


def weight_gradients(gradient: Tensor, inputs: Tensor, mean: Tensor) -> Tensor:
    """Each image's own gradient [B, outputs, inputs] of a weight whose bias makes up for the means."""
    return torch.einsum("bno,bni->boi", gradient, inputs - mean)


def measure(
    model: Architecture,
    batches: Iterable[Tensor],
    candidates: Sequence[Candidates],
    means: Sequence[dict[str, Tensor]],
    *,
    samples: int,
    generator: torch.Generator,
) -> list[Effects]:
    """The effect of each candidate of widths: half the mean of (gradient . change)^2 over images and draws.

    `means` holds the mean "hidden" and "context" of each block.
    """
    effects = [Effects() for _ in candidates]
    seen_images = 0

    def add(to: dict[int, float], deltas: dict[int, Tensor], gradient: Tensor) -> None:
        flat = gradient.flatten(1)
        for left, delta in deltas.items():
            to[left] = to.get(left, 0.0) + float((flat @ delta.flatten().float()).double().pow(2).sum()) / 2

    for seen, drawn in sampled_gradients(model, batches, samples, generator):
        for i, (s, c, m, e) in enumerate(zip(seen, candidates, means, effects, strict=True)):
            for g in (gradients[i] for gradients in drawn):
                if "mlp" in g:
                    add(e.units, c.d_units, weight_gradients(g["mlp"], s["hidden"], m["hidden"]))
                if "attention" in g:
                    per_weight = weight_gradients(g["attention"], s["context"], m["context"])
                    add(e.heads, c.d_heads, per_weight)
                    add(e.values, c.d_values, per_weight)
                    dim = next(iter(c.d_logits.values())).shape[-1] if c.d_logits else s["q"].shape[-1]
                    q, gq = s["q"].unflatten(-1, (-1, dim)), g["q"].unflatten(-1, (-1, dim))
                    add(e.logits, c.d_logits, torch.einsum("bnhd,bnhe->bhde", gq, q))
        seen_images += samples * len(next(iter(seen[0].values())))
    for e in effects:
        for table in (e.units, e.heads, e.values, e.logits):
            for left in table:
                table[left] /= max(seen_images, 1)
    return effects
