"""A graph that chooses another of two equally near pairs of tokens is right; one that differs elsewhere is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.vit.variants import PLAIN, images, make
from vitedge.steps import export
from vitedge.steps.export import EXPORT_TOLERANCE
from vitedge.vit.block import Merge
from vitedge.vit.config import ViTConfig

MERGED = PLAIN.with_block(0, merge=Merge(9))


class Chooses(torch.nn.Module):
    """Its logits jump where the first two pixels are equal, as a merge's do where two pairs are."""

    config = MERGED

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x[:, 0, 0, 0], x[:, 0, 0, 1]
        return torch.stack([torch.ones(len(x)), -torch.ones(len(x)), 0.2 * (first > second)], 1)


def logits(model: torch.nn.Module, batches: list[torch.Tensor]) -> np.ndarray:
    return torch.cat([model(x) for x in batches]).numpy()


def test_only_images_whose_own_choice_is_open_may_differ() -> None:
    x = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    x[:, 0, 0, 1] = x[:, 0, 0, 0] + torch.where(torch.arange(40) < 15, 0.0, 0.5)
    model, batches = Chooses(), list(x.split(16))
    expected = logits(model, batches)
    tied = export._tied(model, batches, expected)
    assert tied[:15].sum() >= 14 and not tied[15:].any()
    other = expected.copy()
    other[:15, 2] = 0.2 - other[:15, 2]
    assert export._difference(model, batches, expected, other) == 0, "more than the share that may always differ"
    other[20:, 2] += 0.01
    assert export._difference(model, batches, expected, other) > EXPORT_TOLERANCE


@pytest.mark.parametrize("config", [PLAIN, MERGED])
def test_a_graph_that_is_wrong_for_all_is_wrong(config: ViTConfig) -> None:
    model, batches = make(config), list(images(config, 32).split(16))
    with torch.inference_mode():
        expected = logits(model, batches)
    assert export._difference(model, batches, expected, expected) == 0
    assert export._difference(model, batches, expected, expected * 1.01) > EXPORT_TOLERANCE
