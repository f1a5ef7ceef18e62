"""Losses as pure functions. Each is a mean over images, so that batches may be split over processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_cross_entropy(
    logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, weights: Tensor | None = None, trim: float = 0.0
) -> Tensor:
    """Cross-entropy of `logits` [B, C] with class shares `targets` [B, C] that sum to 1.

    `smoothing` spreads that share evenly over all classes (arXiv 1512.00567). `weights` [C] multiply each
    image's loss by its class's weight; the mean stays one over B, not over the weights of the batch, so that
    the gradient of a batch is the mean of its parts' gradients. `trim`: as `trimmed_mean`.
    """
    smoothed = targets * (1 - smoothing) + smoothing / targets.shape[1]
    loss = -(smoothed * F.log_softmax(logits.float(), dim=1)).sum(1)
    if weights is not None:
        loss = loss * (targets @ weights)
    return trimmed_mean(loss, trim)


def multi_label_loss(
    logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, weights: Tensor | None = None, trim: float = 0.0
) -> Tensor:
    """Binary cross-entropy of `logits` [B, C] with `targets` [B, C] in [0, 1]; `weights` [C] for the positives."""
    smoothed = targets * (1 - smoothing) + smoothing / 2
    loss = F.binary_cross_entropy_with_logits(logits.float(), smoothed, pos_weight=weights, reduction="none")
    return trimmed_mean(loss.mean(1), trim)


def trimmed_mean(losses: Tensor, trim: float) -> Tensor:
    """The mean of `losses` [B] without the share `trim` that is largest: images whose label is likely wrong.

    The small-loss rule: a network fits right labels before wrong ones (Shen and Sanghavi, ICML 2019, arXiv
    1810.11874; Han et al., co-teaching, arXiv 1804.06872, which takes two networks).
    """
    kept = max(1, len(losses) - int(len(losses) * trim))
    return losses.mean() if kept == len(losses) else losses.topk(kept, largest=False).values.mean()


def class_weights(counts: Tensor, classes_per_image: bool = True) -> Tensor:
    """Weights [C] inverse to the root of how often each class occurs (`counts` [C]), their mean over images 1.

    The root, not the inverse itself: a class with one image should not drown the rest. Absent classes get 1.
    """
    seen = counts.double().clamp_min(1)
    weights = seen.rsqrt()
    share = counts.double() / counts.sum().clamp_min(1)
    mean = (weights * share).sum()
    weights = weights / mean if mean > 0 else torch.ones_like(weights)
    return torch.where(counts > 0, weights, torch.ones_like(weights)).float()


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of the student's class shares [B, C] from the teacher's at `temperature`, times its square.

    Hinton et al., arXiv 1503.02531.
    """
    student = F.log_softmax(logits.float() / temperature, dim=1)
    target = F.log_softmax(teacher.float() / temperature, dim=1)
    return F.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2


def output_distance(output: Tensor, teacher: Tensor, temperature: float, activation: str) -> Tensor:
    """How far the student's output is from the teacher's: `distillation` of classes; of several labels [B, C] the sum
    over them of the KL divergence of a yes or no; of embeddings [B, C] or [B, N, C] 1 - cosine (see `vitedge.metrics`).
    """
    if activation == "none":
        return (1 - F.cosine_similarity(output.float(), teacher.float(), dim=-1)).mean()
    if activation == "sigmoid" or output.shape[1] == 1:
        student, target = output.float() / temperature, teacher.float() / temperature
        share = target.sigmoid()
        yes = share * (F.logsigmoid(target) - F.logsigmoid(student))
        no = (1 - share) * (F.logsigmoid(-target) - F.logsigmoid(-student))
        return (yes + no).sum(1).mean() * temperature**2
    return distillation(output, teacher, temperature)


def feature_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of features [B, N, C] over the teacher's squared norm, per token, then averaged.

    Relative per token: a trained ViT's few massive tokens (norms fifty times the others') would otherwise be
    all that is learned.
    """
    student, teacher = student.float(), teacher.float()
    centred = teacher - teacher.mean(-1, keepdim=True)
    distance = (student - teacher).square().sum(-1)
    return (distance / centred.square().sum(-1).clamp_min(1e-6)).mean()
