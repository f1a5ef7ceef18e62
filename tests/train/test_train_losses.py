"""Losses against PyTorch's own and by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vitedge.train.losses import (
    class_weights,
    distillation,
    feature_error,
    multi_label_loss,
    soft_cross_entropy,
)


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * 3


def test_soft_cross_entropy_is_pytorchs(logits: torch.Tensor) -> None:
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    ours = soft_cross_entropy(logits, F.one_hot(labels, 5).float(), smoothing=0.1)
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_weighted_batches_add_up(logits: torch.Tensor) -> None:
    targets = F.one_hot(torch.tensor([0, 1, 2, 3, 4, 0]), 5).float()
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0, 1.0])
    whole = soft_cross_entropy(logits, targets, weights=weights)
    halves = [soft_cross_entropy(logits[i], targets[i], weights=weights) for i in (slice(3), slice(3, 6))]
    torch.testing.assert_close(whole, torch.stack(halves).mean())


def test_multi_label_is_bce(logits: torch.Tensor) -> None:
    targets = (logits.roll(1, 0) > 0).float()
    torch.testing.assert_close(
        multi_label_loss(logits, targets), F.binary_cross_entropy_with_logits(logits, targets)
    )


def test_class_weights() -> None:
    counts = torch.tensor([100, 1, 0])
    weights = class_weights(counts)
    assert weights[1] / weights[0] == pytest.approx(10)
    assert weights[2] == 1
    assert float((weights * counts).sum() / counts.sum()) == pytest.approx(1)


def test_distillation_is_zero_for_equal_logits_and_rises(logits: torch.Tensor) -> None:
    assert float(distillation(logits, logits + 5, 2.0)) == pytest.approx(0, abs=1e-6)
    assert float(distillation(logits, logits.flip(1), 2.0)) > 0.1


def test_feature_error_weighs_tokens_alike() -> None:
    teacher = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    scaled = teacher.clone()
    scaled[:, 1] *= 100
    student = lambda x: x + 0.1 * (x - x.mean(-1, keepdim=True))  # noqa: E731
    torch.testing.assert_close(feature_error(student(teacher), teacher), torch.tensor(0.01))
    torch.testing.assert_close(feature_error(student(scaled), scaled), torch.tensor(0.01))
