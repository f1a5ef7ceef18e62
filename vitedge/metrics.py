"""How near two sets of logits are: one definition each of agreement, KL divergence, SQNR and cosine, in numpy.

`reference` always comes first: the model that the other is held against. Arrays are [N, classes] of the same images,
anything that numpy can read (CPU tensors too); all sums are in float64. A figure has no meaning without the name of its
reference, which the caller states: the source model, or the float model before a step.
"""

from __future__ import annotations

import math
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import ArrayLike

# "none": the output is an embedding, and what counts is its direction.
Activation = Literal["softmax", "sigmoid", "none"]

# What stands for a logit that is no number: in the records of a run it must be worse than any other, and finite.
_NO_LOGIT = -1e30


def decisions(logits: ArrayLike, activation: Activation = "softmax") -> np.ndarray:
    """What a model says of each image.

    Returns:
        int [N]: the class with the largest logit; of a single logit, 1 where it is above zero (probability 0.5).
        With "sigmoid" and several classes bool [N, classes]: those above zero.
    """
    values = np.asarray(logits)
    if values.shape[1] == 1:
        return np.asarray(values[:, 0] > 0, np.int64)
    return np.asarray(values > 0 if activation == "sigmoid" else values.argmax(1))


def agreements(reference: ArrayLike, other: ArrayLike, activation: Activation = "softmax") -> np.ndarray:
    """bool [N]: the images of which both say the same; of several labels, all of them; of embeddings those whose
    nearest other image, by cosine, is the same (recall@1 against the reference's own retrieval)."""
    if activation == "none":
        return np.asarray(nearest(reference) == nearest(other))
    same = decisions(reference, activation) == decisions(other, activation)
    return np.asarray(same if same.ndim == 1 else same.all(1))


def agreement(reference: ArrayLike, other: ArrayLike, activation: Activation = "softmax") -> float:
    """The share of images of which both say the same (see `decisions`)."""
    return float(agreements(reference, other, activation).mean())


def directions(embeddings: ArrayLike) -> np.ndarray:
    """Embeddings [N, ...] as vectors of norm 1, float64 [N, C]; zeros stay zeros."""
    x = np.asarray(embeddings, np.float64)
    x = x.reshape(len(x), -1)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30))


def nearest(embeddings: ArrayLike) -> np.ndarray:
    """int [N]: for each image the other one whose embedding is nearest by cosine."""
    x = directions(embeddings)
    similarity = x @ x.T
    np.fill_diagonal(similarity, -np.inf)
    return np.asarray(similarity.argmax(1))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """The logarithms of the probabilities, [N, classes]."""
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def kl_by_image(reference: ArrayLike, other: ArrayLike, activation: Activation = "softmax") -> np.ndarray:
    """KL(reference || other) of the probabilities, float64 [N], in nats; of single logits and with "sigmoid" the sum
    over the classes, each of which is a yes or no. Of embeddings 1 - cosine, which is the KL divergence of two von
    Mises-Fisher distributions but for a factor."""
    if activation == "none":
        return np.asarray(1 - (directions(reference) * directions(other)).sum(1))
    p, q = (np.asarray(x, np.float64) for x in (reference, other))
    if activation == "softmax" and p.shape[1] > 1:
        log_p, log_q = log_softmax(p), log_softmax(q)
        return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(1))
    yes = np.exp(-np.logaddexp(0, -p))
    # log sigmoid(x) = -log(1 + exp(-x)), which logaddexp computes without overflow
    gain = yes * (np.logaddexp(0, -q) - np.logaddexp(0, -p)) + (1 - yes) * (np.logaddexp(0, q) - np.logaddexp(0, p))
    return np.asarray(gain.sum(1))


def cosine_drop(reference: ArrayLike, other: ArrayLike) -> tuple[float, float]:
    """(percent of cosine to the reference that an image loses on average, its standard error over images)."""
    return mean_and_error(100 * kl_by_image(reference, other, "none"))


def mean_and_error(each: np.ndarray) -> tuple[float, float]:
    """(mean, its standard error) of a figure of each image [N]; of one image alone the error is infinite."""
    return float(each.mean()), float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else math.inf


def kl(reference: ArrayLike, other: ArrayLike, activation: Activation = "softmax") -> float:
    """The mean of `kl_by_image`, never below zero."""
    return max(0.0, float(kl_by_image(reference, other, activation).mean()))


def energies(reference: ArrayLike, other: ArrayLike) -> tuple[float, float]:
    """(signal, noise): the sum of squares of `reference` and of the difference, for `sqnr_of`; they may be added up."""
    a, b = (np.asarray(x, np.float64) for x in (reference, other))
    return float(np.square(a).sum()), float(np.square(a - b).sum())


def sqnr_of(signal: float, noise: float) -> float:
    """Signal-to-quantisation-noise ratio in dB of two energies; infinite without noise, -infinite without signal."""
    if noise <= 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def sqnr_db(reference: ArrayLike, other: ArrayLike) -> float:
    """Signal-to-quantisation-noise ratio in dB: the energy (sum of squares, no mean taken off) of `reference` over that
    of the difference. Infinite where the two are equal to the last bit: JSON gets `finite` of it, which is null."""
    return sqnr_of(*energies(reference, other))


def cosine(reference: ArrayLike, other: ArrayLike) -> float:
    """Cosine of the angle between the two as vectors; 0 where one of them is zero."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (reference, other))
    return cosine_of(float(a @ a), float(b @ b), float(a @ b))


def cosine_of(aa: float, bb: float, ab: float) -> float:
    """`cosine` from the three products."""
    return ab / math.sqrt(aa * bb) if aa > 0 and bb > 0 else 0.0


def finite(value: float | None, digits: int | None = None) -> float | None:
    """The value for JSON, rounded: None for infinity and what is no number."""
    if value is None or not math.isfinite(value):
        return None
    return value if digits is None else round(value, digits)


class Fidelity(TypedDict):
    """How near logits are to others, as JSON holds it; no SQNR where the two are equal."""

    agreement: float
    sqnr_db: float | None


def fidelity(reference: ArrayLike, other: ArrayLike, activation: Activation = "softmax") -> Fidelity:
    """Agreement and SQNR of `other`, [n, classes] both."""
    return {
        "agreement": agreement(reference, other, activation),
        "sqnr_db": finite(sqnr_db(reference, other)),
    }


def without_gaps(logits: ArrayLike) -> np.ndarray:
    """float64 [N, classes] with a very low logit in the place of each that is no number."""
    values = np.asarray(logits, np.float64)
    return np.where(np.isfinite(values), values, _NO_LOGIT)
