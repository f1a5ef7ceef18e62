"""What is recorded of each image: a few numbers, from which every accuracy figure is computed.

A run over 50,000 images keeps 50 bytes an image, so it can be interrupted and continued, its memory stays
flat, and the report finds the images that flipped without running a model again.
"""

from __future__ import annotations

import numpy as np

from vitedge.metrics import Activation, agreements, kl_by_image, log_softmax, without_gaps

RECORD = np.dtype(
    [
        ("index", "<i8"),  # the image's number in the data set
        ("label", "<i4"),  # -1 where it has none
        ("pred", "<i4"),  # the class with the largest logit
        ("reference", "<i4"),  # the reference's prediction; -1 without a reference
        ("same", "?"),  # whether the two say the same, of several labels all of them
        ("rank", "<i4"),  # how many classes come before the label; -1 without one
        ("finite", "?"),  # False where a logit is NaN or infinite
        ("confidence", "<f4"),  # probability of `pred`
        ("signal", "<f8"),  # energy of the reference's logits
        ("noise", "<f8"),  # energy of their difference
        ("kl", "<f4"),  # KL(reference || this), in nats
    ]
)


def make(
    index: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    activation: Activation = "softmax",
) -> np.ndarray:
    """The records [n] of a batch.

    Args:
        index: the images' numbers, int [n].
        logits: float32 [n, classes].
        labels: int [n], -1 for none; or None.
        reference: the reference's logits on the same images, float32 [n, classes], or None.
        activation: "sigmoid" for several labels an image. A single logit is a yes (class 1) or a no (class 0).
    """
    logits = np.asarray(logits, np.float64)
    out = np.zeros(len(logits), RECORD)
    out["index"] = index
    out["finite"] = np.isfinite(logits).all(1)
    logits, single = _two_classes(without_gaps(logits)), logits
    log_p = log_softmax(logits)
    out["pred"] = logits.argmax(1)
    out["confidence"] = np.exp(log_p.max(1))
    out["label"], out["rank"], out["reference"] = -1, -1, -1
    if labels is not None:
        labels = np.asarray(labels)
        out["label"] = labels
        own = np.take_along_axis(logits, np.maximum(labels, 0)[:, None], 1)
        rank = (logits > own).sum(1)
        # Equal logits: argmax takes the first class, so those before the label count as ranked before it.
        rank += ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None])).sum(1)
        out["rank"] = np.where(labels >= 0, rank, -1)
    if reference is not None:
        reference, logits = np.asarray(reference, np.float64), without_gaps(single)
        out["reference"] = _two_classes(reference).argmax(1)
        out["same"] = agreements(reference, logits, activation)
        out["signal"] = np.square(reference).sum(1)
        out["noise"] = np.square(np.maximum(logits, -1e6) - reference).sum(1)
        out["kl"] = kl_by_image(reference, logits, activation)
    return out


def _two_classes(logits: np.ndarray) -> np.ndarray:
    """A single logit x as the two classes 0 and x, whose softmax is its sigmoid."""
    return np.concatenate([np.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
