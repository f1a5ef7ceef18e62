"""A new head in closed form, on the frozen features of a few images a class."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from vitedge.data.dataset import Dataset
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.train.classify import Holdout
from vitedge.train.images import Normalizer
from vitedge.train.options import FineTuneOptions
from vitedge.vit.architecture import Architecture

_DECAY = 0.1  # of the weights of logistic regression, on features of unit variance


def choose_shots(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Places of at most `shots` images of each class, drawn by the seed, in the order of the set."""
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


@torch.no_grad()
def features(
    model: Architecture, batches: Iterable[tuple[Tensor, Tensor]], normalize: Normalizer, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What the head reads [N, C], and the targets [N, classes], of uint8 images [B, 3, H, W]."""
    seen: list[Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].float().cpu()))
    try:
        targets = [target for pixels, target in batches if model(normalize(pixels.to(device))) is not None]
    finally:
        handle.remove()
    return torch.cat(seen), torch.cat(targets)


def fit_prototypes(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [classes, C] and bias [classes] of the nearest class mean, as probabilities of equal round Gaussians.

    Prototypical networks (Snell et al., arXiv 1703.05175). The variance is that within the classes; where each has one
    image, that of all.
    """
    means = (targets.T @ x) / targets.sum(0)[:, None].clamp_min(1)
    within = (x - targets @ means).square().mean()
    variance = within if within > 1e-6 else x.var(0).mean()
    return means / variance, -means.square().sum(1) / (2 * variance)


def fit_linear(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [classes, C] and bias [classes] of L2-regularised logistic regression, by L-BFGS to its optimum."""
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)
    z = (x - mean) / deviation
    weight = torch.zeros(targets.shape[1], x.shape[1], requires_grad=True)
    bias = torch.zeros(targets.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(z @ weight.T + bias, targets) + _DECAY / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    scaled = weight.detach() / deviation
    return scaled, bias.detach() - scaled @ mean


def fit_head(
    model: Architecture,
    train: Dataset,
    preprocess: Preprocess,
    options: FineTuneOptions,
    seed: int,
    device: torch.device,
) -> None:
    """Gives the model the head that `options.shots` images a class make. Raises VitedgeError for several labels."""
    if train.multi_label or train.labels is None:
        raise VitedgeError("--shots needs one label an image.", "This set has several.", "Train without --shots.")
    few = train.subset(choose_shots(train.labels, options.shots or 1, seed))
    classes = model.config.classes
    x, targets = features(model, Holdout(few, preprocess, classes), Normalizer(preprocess), device)
    weight, bias = (fit_linear if options.shots_head == "linear" else fit_prototypes)(x, targets)
    with torch.no_grad():
        model.head.weight.copy_(weight)
        model.head.bias.copy_(bias)
